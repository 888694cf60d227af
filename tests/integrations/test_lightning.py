"""Lightning: training is exact, what it validates, saves and leaves is x."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler

import emanest
import runs
from emanest.integrations.lightning import EvalAtIterate
from helpers import content, differing

BATCHES, EPOCHS = 5, 2
each_lookahead = pytest.mark.parametrize("lookahead", runs.LOOKAHEADS)
each_optimizer = pytest.mark.parametrize("name", runs.OPTIMIZERS)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "The '[a-z]+_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    )
]


class Module(pl.LightningModule):
    """One optimizer; notes the weights and the mode wherever Lightning evaluates."""

    def __init__(self, name, lookahead):
        super().__init__()
        self.name, self.lookahead = name, lookahead
        self.net = runs.make_model()
        self.seen = []

    def configure_optimizers(self):
        optimizer = runs.OPTIMIZERS[self.name](self.net, runs.METHODS[self.lookahead])
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    def loss(self, batch):
        x, target = batch
        return nn.functional.mse_loss(self.net(x), target)

    def training_step(self, batch, batch_idx):
        assert runs.in_train_mode(self.optimizers())
        return self.loss(batch)

    def note(self):
        mode = runs.in_train_mode(self.trainer.optimizers) if self.trainer.optimizers else None
        self.seen.append((self.trainer.state.stage, mode, runs.weights(self.net.state_dict())))

    def validation_step(self, batch, batch_idx):
        self.note()
        self.log("loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.note()

    def predict_step(self, batch, batch_idx):
        self.note()
        return self.loss(batch)


class Manual(Module):
    """Two optimizers, stepped by hand; the second is torch's where there is no lookahead."""

    def __init__(self, second):
        super().__init__("adamw", "ema")
        self.automatic_optimization = False
        self.second = second

    def configure_optimizers(self):
        body, head = self.net[:-1], self.net[-1]
        first = runs.OPTIMIZERS["adamw"](body, runs.METHODS["ema"])
        return first, self.second(head.parameters())

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


SECONDS = {
    "emanest": lambda params: emanest.SGD(params, lr=0.1, lookahead=runs.METHODS["gpa"]),
    "torch": lambda params: torch.optim.SGD(params, lr=0.1),
}


def arguments(folder, **options):
    given = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return given | options


def trainer(folder, callbacks=(EvalAtIterate,), **options):
    callbacks = [each() if isinstance(each, type) else each for each in callbacks]
    files = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    return pl.Trainer(
        **arguments(folder, enable_checkpointing=files, **options), callbacks=callbacks
    )


def fit(module, folder, callbacks=(EvalAtIterate,), resume=None, **arguments):
    run = trainer(folder, callbacks, **arguments)
    run.fit(module, runs.loader(BATCHES), runs.loader(1), ckpt_path=resume)
    return run


def training(run):
    """All that a run depends on, at y."""
    found = emanest.find_all(run)
    for optimizer in found:
        optimizer.train()
    return [content(optimizer) for optimizer in found]


def same_training(a, b):
    pairs = zip(training(a), training(b), strict=True)
    return [differing(*pair) for pair in pairs] == [[] for _ in emanest.find_all(a)]


def saved(path):
    return torch.load(path, weights_only=True)


def net_weights(checkpoint):
    return runs.weights({k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()})


def x_of(module, run):
    return runs.weights(emanest.iterate_state_dict(module.net, run))


def never(module, folder, **arguments):
    """A fit that nobody validates and nothing changes."""
    return fit(module, folder, callbacks=(), limit_val_batches=0, **arguments)


ACCUMULATING = {"accumulate_grad_batches": 2, "val_check_interval": 1}


@each_lookahead
@each_optimizer
@pytest.mark.parametrize("how", [{}, ACCUMULATING], ids=["each epoch", "between micro-batches"])
def test_a_fit_with_validations_equals_one_without(name, lookahead, how, tmp_path):
    module, plain = Module(name, lookahead), Module(name, lookahead)
    accumulate = {k: v for k, v in how.items() if k == "accumulate_grad_batches"}
    expected = never(plain, tmp_path, **accumulate)
    run = fit(module, tmp_path, **how)
    assert same_training(run, expected)
    assert len(module.seen) == 1 + EPOCHS * (BATCHES if how else 1)
    assert {mode for _, mode, _ in module.seen} == {False}


@each_lookahead
@each_optimizer
def test_what_is_evaluated_and_left_is_x(name, lookahead, tmp_path):
    module = Module(name, lookahead)
    run = fit(module, tmp_path)
    plain = Module(name, lookahead)
    halves = [runs.weights(plain.net.state_dict())]
    for epochs in (1, 2):
        plain = Module(name, lookahead)
        halves.append(x_of(plain, never(plain, tmp_path, max_epochs=epochs)))
    stages = ["sanity_check", "validate", "validate"]
    assert [stage for stage, _, _ in module.seen] == stages
    assert [found for _, _, found in module.seen] == halves
    assert runs.weights(module.net.state_dict()) == halves[-1]
    module.seen.clear()
    run.validate(module, runs.loader(1), verbose=False)
    run.test(module, runs.loader(1), verbose=False)
    run.predict(module, runs.loader(1))
    assert module.seen == [(stage, False, halves[-1]) for stage in ("validate", "test", "predict")]


@each_lookahead
def test_a_fit_that_nobody_validates_is_left_at_x(lookahead, tmp_path):
    module, plain = Module("adamw", lookahead), Module("adamw", lookahead)
    run = fit(module, tmp_path, limit_val_batches=0)
    expected = never(plain, tmp_path)
    assert runs.weights(module.net.state_dict()) == x_of(plain, expected)
    assert same_training(run, expected)


def test_without_the_callback_validation_and_the_model_that_is_left_are_y(tmp_path):
    module = Module("adamw", "ema")
    run = fit(module, tmp_path, callbacks=())
    assert {mode for _, mode, _ in module.seen} == {True}
    left = runs.weights(module.net.state_dict())
    assert module.seen[-1][2] == left != x_of(module, run)


# when a ModelCheckpoint writes the only file of an epoch
WRITES = {
    "after validation": {"monitor": "loss", "save_on_train_epoch_end": False},
    "at the end of an epoch": {"save_on_train_epoch_end": True},
    "every step": {"every_n_train_steps": 1},
}


@each_lookahead
@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("bare", [False, True], ids=["callback", "bare"])
def test_a_fit_resumes_exactly_from_a_checkpoint(lookahead, writes, bare, tmp_path):
    def run(**options):
        files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **WRITES[writes])
        callbacks = [files] if bare else [files, EvalAtIterate]
        return fit(Module("adamw", lookahead), tmp_path, callbacks, **options)

    whole = run()
    path = tmp_path / f"step={BATCHES}.ckpt"
    (state,) = saved(path)["optimizer_states"]
    assert state["param_groups"][0]["train_mode"] == bare
    resumed = run(resume=path)
    assert same_training(resumed, whole)


@each_lookahead
@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("weights_only", [False, True])
def test_the_weights_in_a_checkpoint_are_x(lookahead, writes, weights_only, tmp_path):
    options = {**WRITES[writes], "save_weights_only": weights_only}
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **options)
    fit(Module("adamw", lookahead), tmp_path, [files, EvalAtIterate])
    plain = Module("adamw", lookahead)
    expected = x_of(plain, never(plain, tmp_path, max_epochs=1))
    assert net_weights(saved(tmp_path / f"step={BATCHES}.ckpt")) == expected
    assert expected != runs.weights(plain.net.state_dict())


def test_without_the_callback_the_weights_in_a_checkpoint_are_y(tmp_path):
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    fit(Module("adamw", "ema"), tmp_path, [files])
    plain = Module("adamw", "ema")
    never(plain, tmp_path, max_epochs=1)
    path = tmp_path / f"step={BATCHES}.ckpt"
    assert net_weights(saved(path)) == runs.weights(plain.net.state_dict())


def test_writing_checkpoints_at_each_step_changes_nothing(tmp_path):
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    run = fit(Module("wrap", "gpa"), tmp_path, [files, EvalAtIterate], limit_val_batches=0)
    assert same_training(run, never(Module("wrap", "gpa"), tmp_path))


def test_a_checkpoint_of_a_fit_that_is_over_is_x(tmp_path):
    module = Module("adamw", "ema")
    run = fit(module, tmp_path)
    assert run.save_checkpoint.__func__ is pl.Trainer.save_checkpoint
    run.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert net_weights(saved(tmp_path / "last.ckpt")) == x_of(module, run)


class Fail(Callback):
    def __init__(self, event):
        def called(*args):
            raise OSError("failed")

        setattr(self, event, called)


@pytest.mark.parametrize(
    "event",
    ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end"],
)
def test_after_an_exception_the_model_is_at_x_and_another_fit_is_exact(event, tmp_path):
    module, files = Module("adamw", "ema"), ModelCheckpoint(tmp_path, "{epoch}")
    run = trainer(tmp_path, [EvalAtIterate, files, Fail(event)], num_sanity_val_steps=0)
    loaders = runs.loader(BATCHES), runs.loader(1)
    with pytest.raises(OSError, match="failed"):
        run.fit(module, *loaders)
    assert not runs.in_train_mode(run)
    assert runs.weights(module.net.state_dict()) == x_of(module, run)
    run.callbacks = [each for each in run.callbacks if not isinstance(each, Fail)]
    again = Module("adamw", "ema")
    run.fit(again, *loaders)
    assert run.save_checkpoint.__func__ is pl.Trainer.save_checkpoint
    plain = Module("adamw", "ema")
    assert runs.weights(again.net.state_dict()) == x_of(plain, never(plain, tmp_path))


def test_an_exception_is_not_hidden_by_a_second_one(tmp_path, monkeypatch):
    def no_memory(self):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(emanest.AdamW, "eval", no_memory)
    with (
        pytest.warns(UserWarning, match="the model is left at y, not at x, because out of memory"),
        pytest.raises(OSError, match="failed"),
    ):
        fit(
            *(Module("adamw", "ema"), tmp_path, [EvalAtIterate, Fail("on_before_optimizer_step")]),
            limit_val_batches=0,
        )


@pytest.mark.parametrize("second", SECONDS)
def test_several_optimizers_go_together(second, tmp_path):
    module, plain = Manual(SECONDS[second]), Manual(SECONDS[second])
    expected = never(plain, tmp_path)
    x = x_of(plain, expected)
    run = fit(module, tmp_path, val_check_interval=1)
    assert runs.weights(module.net.state_dict()) == x == module.seen[-1][2]
    assert same_training(run, expected)
    assert runs.weights(module.net.state_dict()) == runs.weights(plain.net.state_dict())


@each_optimizer
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_can_be_clipped(name, precision, tmp_path):
    clipped, plain = Module(name, "ema"), Module(name, "ema")
    fit(clipped, tmp_path, gradient_clip_val=1e-3, precision=precision)
    fit(plain, tmp_path, precision=precision)
    assert runs.weights(clipped.net.state_dict()) != runs.weights(plain.net.state_dict())


def test_where_we_would_unscale_ourselves_a_subclass_leaves_clipping_to_lightning(
    tmp_path, monkeypatch
):
    """The flag is that of a GPU, where Lightning looks at it even without a GradScaler."""
    monkeypatch.setattr(emanest.optimizer.launches, "scales_on_device", lambda optimizer: True)
    mixed = {"gradient_clip_val": 1e-3, "precision": "bf16-mixed"}
    with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
        fit(Module("adamw", "ema"), tmp_path, **mixed)

    class AdamW(emanest.AdamW):
        _step_supports_amp_scaling = False

    monkeypatch.setattr(emanest, "AdamW", AdamW)
    assert isinstance(emanest.find(fit(Module("adamw", "ema"), tmp_path, **mixed)), AdamW)


def test_rates_are_scheduled(tmp_path):
    run = fit(Module("adamw", "ema"), tmp_path)
    assert emanest.find(run).param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**EPOCHS)


@pytest.mark.parametrize("sanity", [0, 1])
def test_another_optimizer_is_refused_before_the_first_batch(sanity, tmp_path):
    module = Module("adamw", "ema")
    module.training_step = lambda batch, batch_idx: pytest.fail("a batch was trained on")
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters())
    with pytest.raises(TypeError, match=r"looked at list, torch\.optim\.adamw\.AdamW \(\[0\]\)"):
        fit(module, tmp_path, num_sanity_val_steps=sanity)


def test_without_a_fit_there_is_no_optimizer_to_act_on(tmp_path):
    class Save(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "file.ckpt")

    module = Module("adamw", "ema")
    trainer(tmp_path, [EvalAtIterate, Save]).validate(module, runs.loader(1), verbose=False)
    assert net_weights(saved(tmp_path / "file.ckpt")) == runs.weights(module.net.state_dict())
    assert module.seen == [("validate", None, runs.weights(module.net.state_dict()))]


@each_optimizer
def test_it_is_found_in_lightnings_wrapper_which_imitates_it(name, tmp_path):
    module = Module(name, "ema")
    run = fit(module, tmp_path)
    outer = module.optimizers()
    assert isinstance(outer, emanest.Optimizer)
    assert emanest.find(outer) is run.optimizers[0] is not outer
    assert emanest.find([outer, run]) is run.optimizers[0]


@each_optimizer
def test_fabrics_wrapper_evaluates_at_x(name):
    fabric = Fabric(accelerator="cpu", devices=1)
    net = runs.make_model()
    inner = runs.OPTIMIZERS[name](net, runs.METHODS["ema"])
    model, optimizer = fabric.setup(net, inner)
    for x, target in runs.loader(BATCHES):
        fabric.backward(nn.functional.mse_loss(model(x), target))
        optimizer.step()
        optimizer.zero_grad()
    assert emanest.find(optimizer) is inner
    before = content(inner)
    x = emanest.iterate_state_dict(net, optimizer)
    with emanest.at_iterate(optimizer):
        assert runs.weights(net.state_dict()) == runs.weights(x)
    assert differing(content(inner), before) == []
