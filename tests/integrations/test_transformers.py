"""Hugging Face Trainer: training is exact, what it evaluates, saves and leaves is x."""

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import emanest
import runs
from emanest.integrations.transformers import EvalAtIterate
from helpers import content, differing

STEPS = 6
each_lookahead = pytest.mark.parametrize("lookahead", runs.LOOKAHEADS)


def make_model():
    torch.manual_seed(1)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(16, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def muon(model, **options):
    """What the Trainer calls an optimizer factory."""
    groups = emanest.split_params(model, verbose=False)
    return emanest.Muon(groups, **options)


def wrap(model, lr, lookahead):
    return emanest.Wrap(torch.optim.AdamW(model.parameters(), lr=lr), lookahead)


OPTIMIZERS = {"adamw": emanest.AdamW, "muon": lambda: muon, "wrap": lambda: wrap}

# when the Trainer evaluates and when it saves
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 3}


def arguments(folder, **options):
    given = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return given | options


def trainer(folder, lookahead, name="adamw", callbacks=(EvalAtIterate,), **options):
    given = {"lr": 0.05, "lookahead": runs.METHODS[lookahead]}
    return Trainer(
        make_model(),
        TrainingArguments(**arguments(folder, **options)),
        train_dataset=tokens(32, 2),
        eval_dataset=tokens(4, 3),
        optimizer_cls_and_kwargs=(OPTIMIZERS[name], given),
        callbacks=list(callbacks),
    )


def trained(*args, resume=None, **kwargs):
    run = trainer(*args, **kwargs)
    run.train(resume_from_checkpoint=resume and str(resume))
    return run


def training(run):
    """All that a run depends on, at y."""
    emanest.find(run).train()
    return content(emanest.find(run))


def model_weights(run):
    return runs.weights(run.model.state_dict())


def saved_weights(folder):
    found = safetensors.torch.load_file(folder / "model.safetensors")
    # tied to the embeddings, saved once
    return runs.weights({**found, "lm_head.weight": found["model.embed_tokens.weight"]})


def x_of(run):
    return runs.weights(emanest.iterate_state_dict(run.model, run))


class At(TrainerCallback):
    """Do something at an event, at given steps."""

    def __init__(self, event, *steps, do):
        def called(args, state, control, **kwargs):
            if state.global_step in steps:
                do(control)

        setattr(self, event, called)


@each_lookahead
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_evaluations_equals_a_run_without(name, lookahead, tmp_path):
    plain = trained(tmp_path, lookahead, name, callbacks=())
    for callbacks in ((), (EvalAtIterate,)):
        evaluated = trained(tmp_path, lookahead, name, callbacks, **EVALUATED)
        assert differing(training(evaluated), training(plain)) == []


@pytest.mark.parametrize("event", ["on_substep_end", "on_optimizer_step", "on_step_end"])
def test_an_evaluation_at_any_moment_changes_nothing(event, tmp_path):
    accumulate = {"gradient_accumulation_steps": 2}
    plain = trained(tmp_path, "ema", **accumulate)
    evaluated = trainer(tmp_path, "ema", **accumulate)
    losses = []
    evaluate = At(event, 1, 2, 3, do=lambda control: losses.append(evaluated.evaluate()))
    evaluated.add_callback(evaluate)
    evaluated.train()
    assert len(losses) == 3
    assert differing(training(evaluated), training(plain)) == []


@each_lookahead
@pytest.mark.parametrize("callbacks", [(), (EvalAtIterate,)], ids=["bare", "callback"])
@pytest.mark.parametrize(
    "evaluated", [{}, {**EVALUATED, "eval_steps": 3}], ids=["never", "at save"]
)
def test_a_run_resumes_exactly_from_either_mode(lookahead, callbacks, evaluated, tmp_path):
    arguments = {"callbacks": callbacks, **evaluated, **SAVED}
    whole = trained(tmp_path, lookahead, **arguments)
    checkpoint = tmp_path / "checkpoint-3"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    # it is evaluations and the callback that go to x
    assert saved["param_groups"][0]["train_mode"] == (not callbacks and not evaluated)
    resumed = trained(tmp_path, lookahead, resume=checkpoint, **arguments)
    assert differing(training(resumed), training(whole)) == []


@each_lookahead
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_what_is_saved_and_what_is_left_is_x(name, lookahead, strategy, tmp_path):
    half, steps = tmp_path / "half", 16
    stopped = trained(half, lookahead, name, callbacks=(), max_steps=steps)
    run = trained(
        *(tmp_path, lookahead, name),
        max_steps=steps,
        save_strategy=strategy,
        save_steps=steps,
    )
    assert saved_weights(tmp_path / f"checkpoint-{steps}") == x_of(stopped) == model_weights(run)
    assert not runs.in_train_mode(run)
    run.save_model(str(half))
    assert saved_weights(half) == model_weights(run)


def test_resuming_a_run_that_is_over_leaves_x(tmp_path):
    # an epoch: of a shorter run the Trainer would take one step more
    steps = {"max_steps": 16, "save_strategy": "epoch"}
    over = trained(tmp_path, "ema", callbacks=(), **steps)
    resumed = trained(tmp_path, "ema", resume=tmp_path / "checkpoint-16", **steps)
    assert resumed.state.global_step == 16
    assert model_weights(resumed) == x_of(over) != model_weights(over)


def test_a_model_saved_half_way_is_x(tmp_path):
    stopped = trained(
        *(tmp_path / "stopped", "ema"),
        callbacks=[
            At("on_step_end", 3, do=lambda control: setattr(control, "should_training_stop", True))
        ],
    )
    trained(tmp_path, "ema", **SAVED)
    assert saved_weights(tmp_path / "checkpoint-3") == x_of(stopped)


def test_without_the_callback_the_model_that_is_saved_and_left_is_y(tmp_path):
    run = trained(tmp_path, "ema", callbacks=(), **SAVED)
    assert runs.in_train_mode(run)
    saved = saved_weights(tmp_path / f"checkpoint-{STEPS}")
    assert saved == model_weights(run)
    assert saved != x_of(run)


@each_lookahead
@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_without_the_callback_what_is_saved_after_an_evaluation_is_x(lookahead, strategy, tmp_path):
    def stop(control):
        control.should_training_stop = True

    stopped = trained(tmp_path / "half", lookahead, callbacks=[At("on_step_end", 2, do=stop)])
    saves = {"save_strategy": strategy, "save_steps": 2, "metric_for_best_model": "loss"}
    run = trained(tmp_path, lookahead, callbacks=(), **EVALUATED, **saves)
    assert saved_weights(tmp_path / "checkpoint-2") == x_of(stopped)
    assert strategy == "steps" or run.state.best_global_step == 2


@each_lookahead
def test_the_best_model_is_x_of_the_best_step(lookahead, tmp_path):
    # tokens are random: the first evaluation is the best, and others come after it
    best = {"load_best_model_at_end": True, "save_steps": 2}
    run = trained(tmp_path, lookahead, **EVALUATED, **SAVED | best)
    assert run.state.best_global_step < STEPS
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint) == x_of(run)
    assert run.evaluate()["eval_loss"] == run.state.best_metric


@each_lookahead
def test_a_run_that_is_stopped_has_the_best_model(lookahead, tmp_path):
    """The last step is in train mode when the best model is loaded over it."""

    def stop(control):
        control.should_training_stop = True

    best = {"load_best_model_at_end": True, "save_steps": 2}
    stopping = [EvalAtIterate, At("on_step_end", 5, do=stop)]
    run = trained(tmp_path, lookahead, callbacks=stopping, **EVALUATED, **SAVED | best)
    assert run.state.global_step == 5
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint)
    assert run.evaluate()["eval_loss"] == run.state.best_metric


def test_without_the_callback_a_best_model_may_be_moved_by_the_next_evaluation(tmp_path):
    def stop(control):
        control.should_training_stop = True

    best = {"load_best_model_at_end": True, "save_steps": 2}
    stopping = [At("on_step_end", 5, do=stop)]
    run = trained(tmp_path, "ema", callbacks=stopping, **EVALUATED, **SAVED | best)
    checkpoint = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert model_weights(run) == saved_weights(checkpoint)
    assert run.evaluate()["eval_loss"] != run.state.best_metric


def test_a_save_that_is_decided_later_is_warned_of(tmp_path):
    def save(control):
        control.should_save = True

    late, early = ([EvalAtIterate, At("on_step_end", 3, do=save)][::order] for order in (1, -1))
    with pytest.warns(UserWarning, match="checkpoint 3 was saved at y, not at x: make EvalAtIter"):
        trained(tmp_path / "late", "ema", callbacks=late)
    run = trained(tmp_path / "early", "ema", callbacks=early)
    assert saved_weights(tmp_path / "late/checkpoint-3") != saved_weights(
        tmp_path / "early/checkpoint-3"
    )
    assert not runs.in_train_mode(run)


def test_predictions_are_made_at_x(tmp_path):
    run = trained(tmp_path, "ema", callbacks=())
    at_y = run.model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits
    run.model.load_state_dict(emanest.iterate_state_dict(run.model, run))
    expected = run.model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits
    run = trained(tmp_path, "ema", callbacks=())
    rows = [{"input_ids": torch.zeros(8, dtype=torch.long)}]
    found = torch.from_numpy(run.predict(rows).predictions)
    assert torch.equal(found, expected)
    assert not torch.equal(found, at_y)


def test_training_goes_on_after_an_evaluation_that_failed(tmp_path):
    def fail(prediction):
        raise OSError("the metric failed")

    whole = trained(tmp_path, "ema")
    run = trainer(tmp_path, "ema", **SAVED, **EVALUATED, eval_delay=4)
    run.compute_metrics = fail
    with pytest.raises(OSError, match="the metric failed"):
        run.train()
    assert not runs.in_train_mode(run)
    run.compute_metrics = None
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert differing(training(run), training(whole)) == []


def test_another_optimizer_is_refused_as_training_begins(tmp_path):
    run = trainer(tmp_path, "ema")
    run.optimizer_cls_and_kwargs = (torch.optim.AdamW, {})
    with pytest.raises(TypeError, match=r"looked at accelerate.*torch\.optim\.adamw\.AdamW"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_found_and_its_rate_scheduled(name, tmp_path):
    run = trained(tmp_path, "ema", name)
    (inner,) = emanest.find_all(run)
    assert emanest.find([run.lr_scheduler, run.accelerator, run.optimizer]) is inner
    assert {group["lr"] for group in inner.param_groups} == {0.0}
    assert {group["lookahead_t"] for group in inner.param_groups} == {STEPS}
