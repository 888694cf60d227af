# SPDX-License-Identifier: MIT
"""Parameter groups: added late, edited during training, given defaults, tied."""

import pytest
import torch
from torch import nn

import emanest
import helpers
from emanest import SNOO, EMANesterov, backends
from emanest.matrix import newton_schulz, polar
from helpers import LR, METHODS, content, differing, params_of, run, values

BASES = {"adamw": helpers.adamw, "sgd": helpers.sgd, "wrap": helpers.wrap_adamw}

each_method = pytest.mark.parametrize("method", METHODS)
each_base = pytest.mark.parametrize("base", BASES)
textbook_bases = pytest.mark.parametrize("base", ["adamw", "wrap"])


def make(base, method, dtype=torch.float32, steps=0):
    optimizer = BASES[base](helpers.parameters(dtype), METHODS[method])
    run(optimizer, range(steps))
    return optimizer


# entries of a late group, and the method that they make
LATE = {
    "same": ({}, None),
    "other": ({"lookahead": SNOO(2, 0.7, 0.5), "lookahead_lr": 0.6}, SNOO(2, 0.6, 0.5)),
    "none": ({"lookahead": None}, None),
}


@each_method
@textbook_bases
@pytest.mark.parametrize(
    ("late", "mode", "kind"),
    [(0, "train", "same"), (0, "eval", "same"), *((4, "eval", kind) for kind in LATE)],
)
def test_a_late_group_joins_the_clock_and_the_mode(method, base, late, mode, kind):
    *old, new = helpers.parameters(torch.float64)
    optimizer = BASES[base](old, METHODS[method])
    known = [helpers.textbook_adamw(method, old)]

    def go(steps):
        for t in steps:
            for group, expected in zip(optimizer.param_groups, known, strict=True):
                expected.step(helpers.gradients(expected.y, t), LR)
                helpers.set_gradients(group["params"], t)
            optimizer.step()

    go(range(late))
    getattr(optimizer, mode)()
    entries, other = LATE[kind]
    optimizer.add_param_group({"params": [new], **entries})
    form = METHODS[method] if kind == "same" else other
    known.append(helpers.published(form, [new], helpers.textbook_adamw(method, [new]).base))
    known[1].t = late
    assert [group["train_mode"] for group in optimizer.param_groups] == [mode == "train"] * 2
    optimizer.train()
    go(range(late, 9))
    for mode, point in (("train", "y"), ("eval", "x")):
        getattr(optimizer, mode)()
        expected = [tensor for each in known for tensor in getattr(each, point)]
        torch.testing.assert_close(values(optimizer), expected, rtol=0, atol=1e-12)


BAD_METHODS = [{"lookahead_decay": 2.0}, {"lookahead": 3}, {"lookahead": "lookahed"}]
BAD_OPTIONS = [{"lr": -1.0}, {"betas": 0.9}, {"params": [torch.zeros(3, dtype=torch.int64)]}]


@pytest.mark.parametrize(
    ("base", "entries"),
    [
        *(("adamw", entries) for entries in BAD_METHODS + BAD_OPTIONS),
        # the options of an inner optimizer are its own affair
        *(("wrap", entries) for entries in BAD_METHODS),
    ],
)
def test_a_bad_group_is_not_added(base, entries):
    optimizer = make(base, "ema", steps=2)
    before = content(optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], **entries})
    assert differing(content(optimizer), before) == []
    run(optimizer, [2])
    assert differing(content(optimizer), content(make(base, "ema", steps=3))) == []


@each_base
def test_a_method_may_be_given_by_its_name_and_settings(base):
    """As it stands in a state dict; none of the default method's settings come with it."""
    named, given = (
        BASES[base]([{"params": helpers.parameters(), **entries}], METHODS["ema"])
        for entries in (
            {"lookahead": "snoo", "lookahead_every": 3},
            {"lookahead": SNOO(3)},
        )
    )
    for optimizer in (named, given):
        run(optimizer, range(7))
    assert differing(content(named), content(given)) == []
    assert "lookahead_decay" not in named.param_groups[0]
    again = BASES[base]([{"params": helpers.parameters(), "lookahead": "ema_nesterov"}], None)
    run(again, range(3))
    assert again.param_groups[0]["lookahead_decay"] == 0.99


@each_base
def test_a_setting_that_a_name_does_not_bring_is_asked_for(base):
    with pytest.raises(ValueError, match="lookahead='nag' needs the entry 'lookahead_momentum'"):
        BASES[base]([{"params": helpers.parameters(), "lookahead": "nag"}], METHODS["ema"])


@each_base
def test_the_group_of_another_optimizer_joins_the_clock_and_the_mode(base):
    optimizer, other = make(base, "ema", steps=3), make(base, "ema")
    other.eval()
    optimizer.add_param_group(other.param_groups[0])
    assert [g["lookahead_t"] for g in optimizer.param_groups] == [3, 3]
    assert [g["train_mode"] for g in optimizer.param_groups] == [True, True]
    run(optimizer, range(3, 5))


# method -> (entry of the group, new value, attribute of the textbook form)
EDITS = {
    "ema": ("lookahead_stepsize", 0.2, "stepsize"),
    "ema window": ("lookahead_stepsize", 0.3, "stepsize"),
    "nag": ("lookahead_momentum", 0.3, "momentum"),
    "lookahead": ("lookahead_alpha", 0.9, "alpha"),
    "long horizon": ("lookahead_every", 2, "every"),
    "snoo": ("lookahead_lr", 0.4, "outer_lr"),
    "gpa": ("lookahead_mu_x", 0.5, "mu_x"),
    "nala": ("lookahead_mu", 0.3, "mu"),
}


@pytest.mark.parametrize("method", EDITS)
@textbook_bases
def test_settings_may_change_during_training(method, base):
    entry, value, attribute = EDITS[method]
    optimizer = BASES[base](helpers.parameters(torch.float64), METHODS[method])
    expected = helpers.textbook_adamw(method, params_of(optimizer))
    for t in range(12):
        if t == 4:
            optimizer.param_groups[0][entry] = value
            setattr(expected, attribute, value)
        expected.step(helpers.gradients(expected.y, t), LR)
        run(optimizer, [t])
        torch.testing.assert_close(values(optimizer), expected.y, rtol=0, atol=1e-12)


@each_base
def test_a_bad_setting_is_an_error_at_the_step_and_changes_nothing(base):
    optimizer = make(base, "ema", steps=2)
    good = optimizer.param_groups[0]["lookahead_stepsize"]
    optimizer.param_groups[0]["lookahead_stepsize"] = 1.5
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"stepsize must be in \(-19, 1\), got 1.5"):
        run(optimizer, [2])
    assert differing(content(optimizer), before) == []
    optimizer.param_groups[0]["lookahead_stepsize"] = good
    run(optimizer, [2])
    assert differing(content(optimizer), content(make(base, "ema", steps=3))) == []


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_late_groups_take_the_defaults_as_they_are_then(base):
    a, b, c = helpers.parameters()
    optimizer = BASES[base]([a], EMANesterov(0.5, 0.9))
    optimizer.defaults.update(lr=0.25, lookahead_stepsize=0.125)
    optimizer.add_param_group({"params": [b]})
    optimizer.add_param_group({"params": [c], "lr": 0.75})
    assert [g["lr"] for g in optimizer.param_groups] == [LR, 0.25, 0.75]
    assert [g["lookahead_stepsize"] for g in optimizer.param_groups] == [0.5, 0.125, 0.125]


@each_base
def test_tied_weights_are_stepped_once(base):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    weight = nn.Parameter(model[0].weight.detach().clone())
    tied, once = (BASES[base](p, METHODS["ema"]) for p in (model.parameters(), [weight]))
    for optimizer in (tied, once):
        run(optimizer, range(4))
    assert differing(content(tied), content(once)) == []


def test_a_back_end_that_cannot_be_had_is_an_error_at_the_step_and_changes_nothing():
    params = *helpers.parameters(torch.float32), *helpers.parameters(torch.float64)
    optimizer = emanest.AdamW([{"params": [p]} for p in params], lookahead=METHODS["ema"])
    run(optimizer, range(2))
    optimizer.param_groups[-1]["backend"] = "fortran"
    before = content(optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"backend must be .* got 'fortran'"):
            run(optimizer, [2])
    assert differing(content(optimizer), before) == []


def test_a_base_that_does_not_exist_is_an_error_at_the_step():
    optimizer = make("adamw", "ema", steps=2)
    optimizer.param_groups[0]["base"] = "adam"
    before = content(optimizer)
    with pytest.raises(ValueError, match=r"base must be one of \['adamw'\], got 'adam'"):
        run(optimizer, [2])
    assert differing(content(optimizer), before) == []


OF_ANY_BASE = ["adamw", "muon", "normuon", "aurora", "soap"]


def test_a_base_without_its_options_is_an_error():
    optimizer = emanest.Muon(helpers.parameters(shapes=[(3, 4)]))
    helpers.run(optimizer, range(2))
    before = helpers.content(optimizer)
    optimizer.param_groups[0]["base"] = "adamw"
    with pytest.raises(ValueError, match=r"group 0 has none of the options \['betas', 'amsgrad'\]"):
        helpers.run(optimizer, [2])
    optimizer.param_groups[0]["base"] = "muon"
    assert helpers.differing(helpers.content(optimizer), before) == []


@pytest.mark.parametrize("then", OF_ANY_BASE)
def test_parameters_may_go_on_with_another_base(then):
    """SOAP finds its bases whenever it has none: with bases of zeros nothing would move."""
    for first in OF_ANY_BASE:
        params = helpers.parameters(shapes=[(6, 4), (4, 6)])
        optimizer = emanest.Muon([{"params": params, "base": first}])
        run(optimizer, range(3))
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": params, "base": then})
        before = values(optimizer)
        others = [nn.Parameter(value.clone()) for value in before]
        fresh = emanest.Muon([{"params": others, "base": then}])
        for each in (optimizer, fresh):
            run(each, [3])
        if then == "soap" != first:
            for p, other in zip(params, others, strict=True):
                for name in ("L", "Q_L", "R", "Q_R", "exp_avg", "exp_avg_sq"):
                    assert torch.equal(optimizer.state[p][name], fresh.state[other][name])
        run(optimizer, range(4, 6))
        assert all((new != old).all() for new, old in zip(values(optimizer), before, strict=True))


def test_a_group_may_be_replaced_by_one_with_other_settings():
    replaced, changed = (emanest.Muon(helpers.parameters(shapes=[(6, 4)])) for _ in range(2))
    for optimizer in (replaced, changed):
        run(optimizer, range(2))
    other = {"adjust_lr_fn": "match_rms_adamw"}
    replaced.param_groups[0] = {**replaced.param_groups[0], **other}
    changed.param_groups[0].update(other)
    for optimizer in (replaced, changed):
        run(optimizer, [2])
    assert differing(content(replaced), content(changed)) == []


# optimizer -> how it is made of groups, and its calls of a back end at a step
LAUNCHES = {
    "adamw": (emanest.AdamW, ["step"]),
    "sgd": (emanest.SGD, ["step"]),
    "muon": (emanest.Muon, ["momentum", "step"]),
    "normuon": (emanest.NorMuon, ["momentum", "normuon", "step"]),
    "wrap": (lambda groups, **o: emanest.Wrap(torch.optim.AdamW(groups), **o), ["follow"]),
}


def unlike_groups():
    """A group for each parameter: the first two alike, else of unlike numbers; one is a stack."""
    shapes = [(6, 4), (6, 4), (2, 6, 4), (6, 4)]
    params = helpers.parameters(shapes=shapes)
    numbers = enumerate(zip(params, (0.01, 0.01, 0.07, 0.02), strict=True))
    groups = [{"params": [p], "lr": lr, "weight_decay": 0.1 * (k // 2)} for k, (p, lr) in numbers]
    groups[2]["stack"] = True
    return groups


@pytest.mark.parametrize("name", LAUNCHES)
def test_groups_and_parameters_out_of_step_share_a_launch(name, monkeypatch):
    make_of, expected = LAUNCHES[name]
    first, second, *others = unlike_groups()
    first["params"] += second["params"]
    together = make_of([first, *others], lookahead=EMANesterov(0.5, 0.9))
    alone = [make_of([group], lookahead=EMANesterov(0.5, 0.9)) for group in unlike_groups()]
    calls, batches, call = [], [], backends.call

    def counted(function, device_type, choice, *args, **options):
        calls.append(args[0])
        return call(function, device_type, choice, *args, **options)

    def iterated(u, *args):
        batches.append(len(u))
        return newton_schulz.orthogonal(u, *args)

    for t in range(5):
        generator = torch.Generator().manual_seed(t)
        pairs = zip(params_of(together), map(params_of, alone), strict=True)
        for k, (p, (q,)) in enumerate(pairs):
            g = torch.randn(p.shape, generator=generator)
            # one of them is stepped less often than the others from then on
            p.grad, q.grad = (None if (t, k) == (2, 1) else g.clone() for _ in range(2))
        for optimizer in alone:
            optimizer.step()
        with monkeypatch.context() as patch:
            patch.setattr(backends, "call", counted)
            patch.setattr(polar, "orthogonal", iterated)
            together.step()
        assert calls == expected
        assert batches == ([4 if t == 2 else 5] if "momentum" in expected else [])
        calls.clear()
        batches.clear()
    for optimizer, q in zip(alone, params_of(together), strict=True):
        (p,) = params_of(optimizer)
        assert helpers.bits(p) == helpers.bits(q)
        its, others = optimizer.state[p], together.state[q]
        assert {k: helpers.bits(its[k]) for k in its} == {
            k: helpers.bits(others[k]) for k in others
        }


def test_groups_go_to_x_in_one_call_however_far_each_is_ahead(monkeypatch):
    together, alone = (unlike_groups() for _ in range(2))
    for k, pair in enumerate(zip(together, alone, strict=True)):
        for group in pair:
            group["lookahead_stepsize"] = 0.1 * (k + 1)
    options = {"lookahead": EMANesterov(0.5, 0.9)}
    one, *each = (emanest.AdamW(its, **options) for its in (together, *([g] for g in alone)))
    calls, call = [], backends.call

    def counted(function, device_type, choice, *args, **options):
        calls.append((args[0], len(args[2])))
        return call(function, device_type, choice, *args, **options)

    for optimizer in (one, *each):
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.step()
    for optimizer in each:
        optimizer.eval()
    monkeypatch.setattr(backends, "call", counted)
    one.eval()
    assert calls == [("move", 4)]
    expected = [helpers.bits(p) for optimizer in each for p in params_of(optimizer)]
    assert [helpers.bits(p) for p in params_of(one)] == expected


def test_nothing_is_kept_of_launches_that_were_shared_with_parameters_that_left():
    optimizer = emanest.AdamW([{"params": helpers.parameters()}])
    optimizer.add_param_group({"params": helpers.parameters()})
    buckets = optimizer.buckets
    for t in range(20):
        optimizer.param_groups[1]["params"] = helpers.parameters()
        optimizer.param_groups[1]["eps"] = 1e-8 * (t + 1)
        run(optimizer, [t])
    homes = {buckets._homes[p][0] for p in params_of(optimizer)}
    assert sum(len(bucket._memos) for bucket in homes) == 1


def test_an_option_of_every_step_gathers_no_launches():
    optimizer = emanest.Muon(helpers.parameters(shapes=[(6, 4)]))
    for t in range(20):
        optimizer.param_groups[0]["eps"] = 1e-7 * (t + 1)
        run(optimizer, [t])
    assert len(optimizer._selection._joints) == 1
