# SPDX-License-Identifier: MIT
"""``compare``: fair to all optimizers, invisible to the caller, honest in its table."""

import copy
import itertools
import json
import math
import re
import weakref

import pytest
import schedulefree
import torch
from torch import nn
from torch.optim import lr_scheduler

import emanest
from emanest.tools import compare, randomness
from emanest.tools.comparison import Comparison, Run
from helpers import bits

TARGET = torch.tensor([0.5, -1.0, 2.0, 0.25])


def make_model():
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2), nn.Linear(3, 1))


def make_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(8, 4, generator=generator)
        yield x, (x @ TARGET).unsqueeze(1)


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def evaluate(model):
    return loss(model, next(make_batches(10_000)))


def adamw(model, lr=0.01, lookahead=None):
    return emanest.AdamW(model.parameters(), lr=lr, lookahead=lookahead)


def sgd(model, lr=0.01, momentum=0.0):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def ema(model):
    return adamw(model, lookahead=emanest.EMANesterov(0.5, 0.9))


def compared(optimizers, seeds=(0,), steps=4, **options):
    """``compare`` with what this file has as defaults."""
    given = {"make_model": make_model, "make_batches": make_batches, "loss": loss} | options
    return compare(optimizers=optimizers, seeds=seeds, steps=steps, **given)


class Ledger:
    """What runs are given: first weights, batches, and what the model drew, for each run."""

    def __init__(self):
        self.weights, self.batches, self.drawn = [], [], []

    def optimizer(self, make):
        def made(model):
            self.weights.append([bits(p) for p in model.parameters()])
            self.batches.append([])
            self.drawn.append([])
            return make(model)

        return made

    def loss(self, model, batch):
        self.batches[-1].append(bits(batch[0]))
        before = torch.get_rng_state()
        found = loss(model, batch)
        self.drawn[-1].append(bits(before))
        return found


class Drawing(torch.optim.SGD):
    """Draws from torch's generators when it is made and in each step, as methods with noise do."""

    def __init__(self, params, lr):
        torch.randn(7)
        super().__init__(params, lr)

    def step(self, closure=None):
        torch.randn(3)
        return super().step(closure)


def lazy_batches(seed):
    """From torch's own generator, as a loader that shuffles."""
    while True:
        x = torch.randn(8, 4)
        yield x, x.sum(1, keepdim=True)


OTHERS = {
    "torch's": sgd,
    "ours": ema,
    "NALA": lambda model: adamw(model, lookahead=emanest.NALA(2, 1e-3, -0.4)),
    "a Wrap": lambda model: emanest.Wrap(sgd(model), emanest.Lookahead(3, 0.5)),
    "one that draws": lambda model: Drawing(model.parameters(), lr=0.01),
    "of another library": lambda model: schedulefree.AdamWScheduleFree(model.parameters(), lr=0.1),
}


@pytest.mark.parametrize("batches", [make_batches, lazy_batches])
@pytest.mark.parametrize("other", OTHERS)
def test_runs_of_a_seed_have_the_same_first_weights_batches_and_dropout(other, batches):
    ledger = Ledger()

    def measured(model):
        torch.randn(2)
        return evaluate(model)

    compared(
        {"first": ledger.optimizer(sgd), "second": ledger.optimizer(OTHERS[other])},
        seeds=(3, 5),
        loss=ledger.loss,
        make_batches=batches,
        evaluate=measured,
    )
    # two more were made for the errors, and trained nothing
    for told in (ledger.weights, ledger.batches):
        a, b, c, d = told[2:]
        assert a == b
        assert c == d
        assert a != c
    assert [len(each) for each in ledger.batches] == [0, 0, 4, 4, 4, 4]
    # a step that draws goes on in the model's numbers: the first are the same
    assert ledger.drawn[2][0] == ledger.drawn[3][0] != ledger.drawn[4][0]
    assert other == "one that draws" or ledger.drawn[2] == ledger.drawn[3]


def by_hand(make, seed, steps):
    """The losses of a plain loop, and of the model after it."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 1)
    optimizer, batches, losses = make(model), make_batches(seed), []
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        value = loss(model, batch)
        losses.append(value.item())
        value.backward()
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return losses, evaluate(model.eval()).item()


@pytest.mark.parametrize("make", [sgd, ema, OTHERS["NALA"], OTHERS["a Wrap"]])
def test_a_run_is_the_plain_loop_bit_for_bit(make):
    def linear():
        return nn.Linear(4, 1)

    losses, at_x = by_hand(make, 3, 25)
    (run,) = compared({"it": make}, [3], 25, make_model=linear, evaluations=25).runs
    # means over the last tenth: two steps
    means = [math.fsum(losses[max(0, t - 2) : t]) / min(t, 2) for t in range(1, 26)]
    assert run == Run("it", 3, tuple(range(1, 26)), tuple(means), None)
    (run,) = compared(
        {"it": make}, [3], 25, make_model=linear, evaluate=evaluate, evaluations=4
    ).runs
    assert run.steps == (0, 6, 12, 18, 25)
    assert run.final == at_x
    assert run.values[2] == by_hand(make, 3, 12)[1]


def test_batches_are_drawn_after_the_model_and_in_a_stream_of_their_own():
    def drawn(seed):
        first = torch.rand(8, 4)
        return itertools.chain([first], (torch.rand(8, 4) for _ in itertools.count()))

    def drawing(model, batch):
        seen.append((batch, torch.rand(8, 4)))
        return model(batch).square().mean()

    seen = []
    compared({"it": sgd}, seeds=(6,), make_batches=drawn, loss=drawing)
    torch.manual_seed(6)
    make_model()
    assert [bits(batch) for batch, _ in seen] == [bits(torch.rand(8, 4)) for _ in range(4)]
    # what a model draws is not what its batches are made of
    assert len({bits(t) for pair in seen for t in pair}) == 8


def test_a_tuple_of_optimizers_and_schedulers_is_stepped_in_turn():
    made = []

    def make(model):
        first, second = sgd(model[0], 0.1), sgd(model[2], 0.01)
        made.append(lr_scheduler.ExponentialLR(first, 0.5))
        return first, second, made[-1]

    def one(model):
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.01)
        factors = [lambda t: 0.5**t, lambda t: 1.0]
        return optimizer, lr_scheduler.LambdaLR(optimizer, factors)

    a, b = compared({"several": make, "one": one}, evaluate=evaluate).runs
    assert a.values == b.values
    assert made[-1].get_last_lr() == [0.1 * 0.5**4]


def test_one_whose_step_needs_a_closure_is_given_one():
    def make(model):
        return torch.optim.LBFGS(model.parameters(), lr=0.5)

    def linear():
        return nn.Linear(4, 1)

    (run,) = compared({"it": make}, make_model=linear, evaluate=evaluate).runs
    assert run.final < 1e-3 * run.values[0]


def test_one_that_has_modes_is_put_into_them():
    """Schedule-Free of another library refuses to step in eval mode, and is evaluated at its x."""
    made = []

    def make(model):
        made.append(schedulefree.SGDScheduleFree(model.parameters(), lr=0.05))
        return made[-1]

    def ours(model):
        return emanest.SGD(model.parameters(), lr=0.05, lookahead=emanest.ScheduleFree(0.9))

    theirs, here = compared({"theirs": make, "ours": ours}, steps=9, evaluate=evaluate).runs
    assert theirs.values == pytest.approx(here.values, rel=1e-4)
    assert made[-1].param_groups[0]["train_mode"]


def test_evaluations_change_no_run():
    few = compared({"it": ema}, steps=16, evaluate=evaluate, evaluations=1).runs[0]
    many = compared({"it": ema}, steps=16, evaluate=evaluate, evaluations=16).runs[0]
    assert len(many.values) == 17
    assert few.values == (many.values[0], many.values[-1])


def test_an_evaluation_is_at_x_in_eval_mode_without_autograd():
    seen = []

    def measured(model):
        modes = [module.training for module in model.modules()]
        seen.append((any(modes), torch.is_grad_enabled(), optimizers[-1].training))
        return 0.0

    optimizers, modes = [], []

    def make(model):
        model[1].eval()
        optimizers.append(ema(model))
        return optimizers[-1]

    def training_loss(model, batch):
        modes.append([module.training for module in model.modules()])
        return loss(model, batch)

    compared({"it": make}, loss=training_loss, evaluate=measured)
    assert seen == [(False, False, False)] * 5
    # each module comes back to the mode that it was in
    assert modes == [[True, True, False, True]] * 4


def cyclic(model):
    optimizer = ema(model)
    optimizer.scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    return optimizer, optimizer.scheduler


@pytest.mark.parametrize("make", [*OTHERS.values(), cyclic], ids=[*OTHERS, "in a cycle"])
def test_there_is_one_model_at_a_time(make):
    made = []

    def counted():
        assert [each() for each in made if each() is not None] == []
        model = make_model()
        made.append(weakref.ref(model[0].weight))
        return model

    compared({"a": make, "b": make}, make_model=counted, evaluate=evaluate)
    assert len(made) == 4


class OneDevice:
    """A device module with one generator, as MPS has."""

    def __init__(self):
        self.state = torch.zeros(1)

    def get_rng_state(self):
        return self.state

    def set_rng_state(self, state):
        self.state = state


class ManyDevices(OneDevice):
    """One with a generator for each device, as CUDA has."""

    def get_rng_state(self):
        pytest.fail("the states of the other devices are left out")

    def set_rng_state(self, state):
        pytest.fail("the states of the other devices are left out")

    def get_rng_state_all(self):
        return [self.state]

    def set_rng_state_all(self, states):
        (self.state,) = states


@pytest.mark.parametrize("kind", [OneDevice, ManyDevices])
def test_generators_of_accelerators_are_put_back(kind, monkeypatch):
    device = kind()
    monkeypatch.setattr(randomness, "_module", lambda: device)

    def drawing(model, batch):
        device.state = device.state + 1
        seen.append(device.state.item())
        return loss(model, batch)

    def measured(model):
        device.state = device.state + 100
        return evaluate(model)

    seen = []
    compared(TWO, loss=drawing, evaluate=measured)
    assert device.state == 0
    assert max(seen) < 100


@pytest.mark.gpu
def test_runs_on_a_device_have_the_same_dropout_and_leave_its_generators():
    def on_device():
        return make_model().cuda()

    def moved(model, batch):
        return loss(model, [t.cuda() for t in batch])

    torch.cuda.manual_seed(7)
    before = bits(torch.cuda.get_rng_state())
    found = compared(TWO, seeds=(1, 2), make_model=on_device, loss=moved)
    a, b, c, d = (run.values for run in found.runs)
    assert (a, c) == (b, d)
    assert a != c
    assert bits(torch.cuda.get_rng_state()) == before


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_nothing_of_the_callers_changes(inside):
    torch.manual_seed(17)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    with inside():
        runs = compared({"it": sgd}, make_batches=lazy_batches, evaluate=evaluate).runs
    with pytest.raises(ZeroDivisionError):
        compared({"it": sgd}, evaluate=lambda model: 1 / 0)
    assert runs == compared({"it": sgd}, make_batches=lazy_batches, evaluate=evaluate).runs
    assert bits(torch.get_rng_state()) == bits(before[0])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]


def test_batches_are_handed_to_the_model_where_there_is_no_loss():
    class Itself(nn.Linear):
        def forward(self, x, target):
            return nn.functional.mse_loss(super().forward(x), target)

    class Alone(nn.Linear):
        def forward(self, x):
            return super().forward(x).square().mean()

    def of(batches, model):
        return compared(
            {"it": sgd}, loss=None, make_batches=batches, make_model=lambda: model(4, 1)
        ).runs

    def named(seed):
        return ({"x": x, "target": y} for x, y in make_batches(seed))

    assert of(make_batches, Itself) == of(named, Itself)
    assert of(lambda seed: (x for x, _ in make_batches(seed)), Alone)[0].final > 0


# ---- what is found ------------------------------------------------------------------------------


def test_a_planted_better_optimizer_is_found_and_a_worse_one():
    found = compared(
        {"slow": lambda model: sgd(model, 0.01), "fast": sgd_fast, "slower": sgd_slower},
        seeds=range(5),
        steps=30,
        evaluate=evaluate,
    )
    assert found.difference("fast").verdict == "better"
    assert found.difference("slower").verdict == "worse"
    assert found.difference("slow", "fast").verdict == "worse"
    assert found.best() == "fast"
    assert found.steps_earlier("fast").mean > 5
    assert found.steps_earlier("slower").words == "never"


def sgd_fast(model):
    return sgd(model, 0.05)


def sgd_slower(model):
    return sgd(model, 0.001)


class Noisy(torch.optim.SGD):
    """As good as SGD but for chance: its learning rate is drawn anew in each step."""

    noise = torch.Generator().manual_seed(0)

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.02 * torch.rand((), generator=self.noise).item()
        return super().step(closure)


@pytest.mark.parametrize("make", [sgd, lambda model: Noisy(model.parameters(), lr=0.01)])
def test_a_planted_equal_optimizer_is_no_difference(make):
    found = compared({"a": sgd, "b": make}, seeds=range(6), steps=20, evaluate=evaluate)
    assert found.difference("b").words == "no difference seen: within 2 errors"
    few = compared({"a": sgd, "b": sgd_fast}, seeds=range(4), steps=20, evaluate=evaluate)
    assert few.difference("b").words == "no difference seen: 4 seeds, 5 are needed"


def diverging(model):
    return sgd(model, 1e6)


@pytest.mark.parametrize("measure", [None, evaluate])
def test_a_run_whose_loss_is_not_finite_stops_and_is_marked(measure):
    stepped = []

    def make(model):
        optimizer = diverging(model)
        optimizer.register_step_post_hook(lambda *args: stepped.append(1))
        return optimizer

    found = compared({"it": make, "sgd": sgd}, steps=200, evaluate=measure, evaluations=1)
    run, other = found.runs
    assert run.diverged == run.steps[-1] < 200
    assert math.isnan(run.final)
    assert [*map(math.isfinite, run.values[:-1])] == [True] * (len(run.values) - 1)
    # none was taken from the loss that was not finite
    assert len(stepped) == run.diverged - 1
    assert other.diverged is None
    assert found.difference("sgd").words == "the other diverged in 1 of 1 seed"
    assert found.best() == "sgd"


def test_a_loss_that_is_not_finite_counts_whatever_an_evaluation_says():
    losses = iter([1.0, 1.0, math.nan, 1.0])

    def failing(model, batch):
        return loss(model, batch) * next(losses)

    (run,) = compared({"it": sgd}, loss=failing, evaluate=evaluate, evaluations=2).runs
    assert run.steps == (0, 2, 3)
    assert math.isnan(run.final)
    assert run.diverged == 3


def test_an_evaluation_that_is_not_finite_stops_the_run():
    values = iter([3.0, 2.0, math.inf])
    (run,) = compared({"it": sgd}, steps=8, evaluations=4, evaluate=lambda m: next(values)).runs
    assert run.steps == (0, 2, 4)
    assert run.values[:2] == (3, 2)
    assert math.isnan(run.final)
    assert run.diverged == 4


# ---- the table ----------------------------------------------------------------------------------

# five seeds; values at steps 0, 10 and 20
PLANTED = {
    "base": [(5, 3, 2)] * 4 + [(5, 3, 3)],
    "ahead": [(5, 2, 1)] * 4 + [(5, 2, 1.5)],
    "same|": [(5, 3, 2)] * 4 + [(5, 3, 3)],
    "lost": [(5, 3, 2)] * 4 + [(5, 3, math.nan)],
}


def planted(higher_is_better=False):
    sign = -1 if higher_is_better else 1
    runs = [
        Run(
            name, seed, (0, 10, 20), tuple(sign * v for v in values), 20 if name == "lost" else None
        )
        for name, rows in PLANTED.items()
        for seed, values in enumerate(rows)
    ]
    return Comparison(tuple(runs), "base", "loss", higher_is_better)


def test_the_table_says_all_in_words():
    # base: mean 2.2, squared deviations .8, error .2; ahead: 1.1, .2, .1
    # differences -1 four times and -1.5: mean -1.1, error .1
    # ahead reaches 2 at step 10 four times, and 3 at 10 * 2 / 3: 10 and 13.33 earlier
    expected = r"""
| optimizer | loss (lower is better) | difference from base | same value, steps earlier | verdict |
| --- | --- | --- | --- | --- |
| base | 2.20 ± 0.20 | | | the baseline |
| ahead | 1.10 ± 0.10 | -1.10 ± 0.10 | 10.67 ± 0.67 | better |
| same\| | 2.20 ± 0.20 | 0 ± 0 | 2.0 ± 2.0 | no difference seen: within 2 errors |
| lost | diverged in 1 of 5 seeds | - | - | diverged in 1 of 5 seeds |
"""
    found = planted()
    words = [re.sub(" +", " ", re.sub("-{4,}", "---", row)) for row in found.table().splitlines()]
    assert words == expected.strip().splitlines()
    # columns stand below each other
    assert len({len(line.replace(r"\|", "  ")) for line in found.table().splitlines()}) == 1
    assert str(found) == found._repr_markdown_()
    assert str(found).endswith(
        "\n\n5 seeds, 20 steps; means ± standard errors; differences by seed."
    )


def test_accuracies_are_compared_the_other_way():
    low, high = planted(), planted(True)
    assert high.difference("ahead").verdict == low.difference("ahead").verdict == "better"
    assert high.steps_earlier("ahead") == low.steps_earlier("ahead")
    assert high.best() == low.best() == "ahead"
    assert "loss (higher is better)" in high.table()
    right = compared(
        {"a": sgd, "b": sgd_fast},
        range(5),
        30,
        evaluate=lambda model: -evaluate(model),
        higher_is_better=True,
    )
    assert right.difference("b").verdict == "better"


def test_the_record_is_json_and_holds_everything():
    found = planted()
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert [Run(**run | {k: tuple(run[k]) for k in ("steps", "values")}) for run in record["runs"]][
        :19
    ] == [*found.runs[:19]]
    assert record["runs"][19]["values"] == [5, 3, None]
    assert record["runs"][19]["diverged"] == 20
    base, ahead, _, lost = record["summary"]
    assert base == {
        "optimizer": "base",
        "mean": pytest.approx(2.2),
        "error": pytest.approx(0.2),
        "count": 5,
        "diverged": 0,
    }
    assert ahead["difference"]["mean"] == pytest.approx(-1.1)
    assert ahead["difference"]["verdict"] == "better"
    assert ahead["steps_earlier"]["reached"] == 5
    assert lost["mean"] is None
    assert lost["difference"]["verdict"] == "diverged"
    assert (record["baseline"], record["measure"]) == ("base", "loss")


def test_the_baseline_can_be_named_and_progress_is_told():
    told = []
    found = compared(
        {"a": sgd, "b": sgd}, (4, 2), 20, baseline="b", progress=told.append, evaluations=3
    )
    assert found.baseline == "b"
    assert "difference from b" in found.table()
    assert "training loss at y, last 2 steps" in found.table()
    values = [f"{run.final:.5g}" for run in found.runs]
    assert [(run.optimizer, run.seed) for run in found.runs] == [
        (name, seed) for seed in (4, 2) for name in ("a", "b")
    ]
    assert told == [
        f"run {i + 1} of 4: {run.optimizer}, seed {run.seed}: {value}"
        for i, (run, value) in enumerate(zip(found.runs, values, strict=True))
    ]


def test_nothing_is_printed_by_itself(capsys):
    compared({"it": sgd})
    assert capsys.readouterr() == ("", "")


# ---- errors -------------------------------------------------------------------------------------

ONE = make_model()
HELD = nn.Linear(4, 1)
STREAM = make_batches(0)


def on_the_same_layer():
    return nn.Sequential(nn.Linear(4, 4), HELD)


def of_another(model):
    return sgd(make_model())


def partly(model):
    return sgd(model[0])


def twice(model):
    return sgd(model), sgd(model[0])


def with_plateau(model):
    optimizer = sgd(model)
    return optimizer, lr_scheduler.ReduceLROnPlateau(optimizer)


def lbfgs_and_more(model):
    return torch.optim.LBFGS(model[0].parameters()), sgd(model[2])


class Numbered:
    """A model whose weights depend on how many there have been."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        model = make_model()
        nn.init.constant_(model[0].bias, self.count)
        return model


def frozen():
    return make_model().requires_grad_(False)


TWO = {"a": sgd, "b": sgd}
FINITE = list(itertools.islice(make_batches(0), 3))

# options -> error and message
ERRORS = {
    "no optimizers": ({"optimizers": {}}, ValueError, "optimizers is empty: name at least one"),
    "a list of optimizers": ({"optimizers": [sgd]}, TypeError, "must be a dict, name .* got list"),
    "a number as a name": ({"optimizers": {0.1: sgd}}, TypeError, "must be strings, got 0.1"),
    "an optimizer": (
        {"optimizers": {"a": sgd(make_model())}},
        TypeError,
        r"optimizers\['a'\] must be a function of the model, .* got SGD",
    ),
    "no optimizer": ({"optimizers": {"a": lambda m: None}}, TypeError, "got NoneType"),
    "an empty tuple": ({"optimizers": {"a": lambda m: ()}}, TypeError, "got nothing"),
    "a scheduler that asks": ({"optimizers": {"a": with_plateau}}, TypeError, "SGD, ReduceLROnPl"),
    "a closure beside others": ({"optimizers": {"a": lbfgs_and_more}}, ValueError, "only be alone"),
    "of another model": ({"optimizers": {"a": of_another}}, ValueError, "of another model: take"),
    "of a part": (
        {"optimizers": {"a": partly}},
        ValueError,
        r"optimizers\['a'\] leaves out '2.weight' and 1 more that .* or freeze them in make_model",
    ),
    "of some twice": ({"optimizers": {"a": twice}}, ValueError, "some parameters twice"),
    "no seeds": ({"seeds": []}, ValueError, r"seeds is empty: pass range\(5\)"),
    "a number of seeds": ({"seeds": 5}, TypeError, r"such as range\(5\), got 5"),
    "a seed twice": ({"seeds": [1, 2, 1]}, ValueError, r"seeds must differ, got \[1, 2, 1\]"),
    "a negative seed": ({"seeds": [0, -1]}, ValueError, r"seeds\[1\] must be at least 0, got -1"),
    "a seed that is no integer": ({"seeds": [0.5]}, TypeError, r"seeds\[0\] must be an integer"),
    "no steps": ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    "no evaluations": ({"evaluations": 0}, ValueError, "evaluations must be at least 1, got 0"),
    "another baseline": ({"baseline": "c"}, ValueError, r"baseline must be one of \['a', 'b'\]"),
    "accuracies without an evaluation": (
        {"higher_is_better": True},
        ValueError,
        "higher_is_better needs evaluate",
    ),
    "no flag": ({"higher_is_better": "yes"}, TypeError, "higher_is_better must be True or False"),
    "a model": ({"make_model": "model"}, TypeError, "make_model must be a function, got 'model'"),
    "a progress bar": ({"progress": True}, TypeError, "progress must be a function, got True"),
    "no module": ({"make_model": lambda: 1}, TypeError, "must return an nn.Module, got int"),
    "the same model": ({"make_model": lambda: ONE}, ValueError, "'0.weight' is that of another"),
    "a shared layer": (
        {"make_model": on_the_same_layer},
        ValueError,
        r"'1.weight' is that of another run: make a new model at each call \(copy.deepcopy",
    ),
    "other weights": ({"make_model": Numbered()}, ValueError, "make_model gave other first weig"),
    "frozen": ({"make_model": frozen}, ValueError, "no parameter to be trained"),
    "lazy": (
        {"make_model": lambda: nn.LazyLinear(1)},
        ValueError,
        "'weight' of the model is not initialised yet: run one forward pass in make_model",
    ),
    "too few batches": (
        {"make_batches": lambda seed: FINITE},
        ValueError,
        r"make_batches\(0\) gave 3 batches for 4 steps: let it go on, with itertools.cycle",
    ),
    "one stream for all": (
        {"make_batches": lambda seed: STREAM},
        ValueError,
        r"make_batches\(0\) gave another first batch than for the run before of seed 0: return a",
    ),
    "a model that takes no targets": (
        {"loss": None},
        TypeError,
        r"the model does not take a batch as it is \(too many .*\): pass loss=..., a function of",
    ),
    "a model that takes other names": (
        {"loss": None, "make_batches": lambda seed: ({"x": x} for x, _ in make_batches(seed))},
        TypeError,
        r"the model does not take a batch as it is \(missing a required argument: 'input'\)",
    ),
    "a model that returns no loss": (
        {"loss": None, "make_batches": lambda seed: (x for x, _ in make_batches(seed))},
        TypeError,
        r"the model returned Tensor of shape \(8, 1\), not .*: pass loss=..., a function of model",
    ),
    "a loss of a vector": (
        {"loss": lambda m, b: m(b[0])},
        TypeError,
        r"loss returned Tensor of shape \(8, 1\), not a tensor of one element with a gradient",
    ),
    "a loss that is a number": ({"loss": lambda m, b: 1.0}, TypeError, "loss returned float, not"),
    "a loss without a gradient": (
        {"loss": lambda m, b: torch.ones(())},
        TypeError,
        r"loss returned Tensor of shape \(\), not",
    ),
    "an evaluation that is none": (
        {"evaluate": lambda model: None},
        TypeError,
        r"evaluate must return a number, got None \(NoneType\)",
    ),
    "several evaluations": (
        {"evaluate": lambda model: torch.ones(2)},
        TypeError,
        r"evaluate must return a number, got tensor\(\[1., 1.\]\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_an_error_and_changes_nothing(case):
    options, error, message = ERRORS[case]
    before = torch.get_rng_state(), copy.deepcopy([ONE.state_dict(), HELD.state_dict()])
    with pytest.raises(error, match=message):
        compared(**{"optimizers": TWO} | options)
    assert bits(torch.get_rng_state()) == bits(before[0])
    # a model that was given again and again has not been trained
    held = [ONE.state_dict(), HELD.state_dict()]
    for now, then in zip(held, before[1], strict=True):
        assert {k: bits(v) for k, v in now.items()} == {k: bits(v) for k, v in then.items()}


def test_what_can_be_seen_without_training_is_seen_before_it():
    trained = []

    def seen(model, batch):
        trained.append(1)
        return loss(model, batch)

    with pytest.raises(ValueError, match="leaves out"):
        compared({"a": sgd, "b": partly}, loss=seen)
    assert trained == []


def test_methods_of_a_comparison_know_its_names():
    found = planted()
    with pytest.raises(ValueError, match=r"name must be one of .*'base'.*, got 'other'"):
        found.mean("other")
    with pytest.raises(ValueError, match="got 'other'"):
        found.difference("base", "other")
    gone = Comparison(tuple(run for run in found.runs if run.optimizer == "lost"), "lost", "loss")
    with pytest.raises(ValueError, match="no optimizer is best: each has a run that diverged"):
        gone.best()


def test_frozen_weights_may_be_shared():
    backbone = nn.Linear(4, 4).requires_grad_(False)

    def make():
        return nn.Sequential(backbone, nn.Linear(4, 1))

    assert len(compared(TWO, make_model=make).runs) == 2


def test_nan_in_a_batch_is_no_other_batch():
    """What a loss masks out may be NaN."""

    def holes(seed):
        for x, y in make_batches(seed):
            yield x, torch.where(x[:, :1] > 0, y, math.nan)

    def masked(model, batch):
        x, y = batch
        known = ~y.isnan()
        return (model(x)[known] - y[known]).square().mean()

    assert len(compared(TWO, make_batches=holes, loss=masked).runs) == 2
