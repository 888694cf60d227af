# SPDX-License-Identifier: MIT
"""examples/nanogpt_loop.py, shrunk: it resumes exactly, accumulates, and evaluates at x."""

import numpy as np
import pytest
import torch

import emanest
from examples.nanogpt_loop import Settings, Trainer, batch_of, cosine, main, run, tokens
from helpers import bits

SMALL = {
    **{"layers": 1, "heads": 2, "width": 16, "context": 8, "vocabulary": 300},
    **{"batch": 8, "micro": 4, "steps": 10, "warmup": 2, "every": 3, "validation": 2},
}


@pytest.fixture
def small(tmp_path):
    """Makes settings of a run of its own on a file of 16-bit tokens."""
    made = np.random.default_rng(0).integers(300, size=2000).astype(np.uint16)
    for side in ("train", "val"):
        made.tofile(tmp_path / f"{side}.bin")

    def make(name="run", **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        given = {"out": str(tmp_path / name), "data": str(tmp_path), "token_type": "uint16"}
        return Settings(**{**SMALL, **given, **changes})

    return make


def content(trainer):
    """Bits of the parameters and of all state, and the numbers of the groups."""
    optimizer = trainer.optimizer
    found = {k: bits(v) for k, v in trainer.model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        found |= {(i, k): bits(v) if torch.is_tensor(v) else v for k, v in state.items()}
    return found, [group["lr"] for group in optimizer.param_groups], trainer.scaler.state_dict()


CASES = [("adamw", "float32"), ("muon", "bfloat16"), ("adamw", "float16")]


@pytest.mark.parametrize(("optimizer", "dtype"), CASES)
def test_a_run_that_is_interrupted_ends_in_the_same_bits(small, optimizer, dtype, capsys):
    given = {"optimizer": optimizer, "dtype": dtype}
    whole, lines = run(small("whole", **given))
    # ends between two checkpoints; what came after the last is done again
    run(small("parts", **given), until=5)
    parts, rest = run(small("parts", **given))
    assert content(parts) == content(whole)
    assert [line[0] for line in rest] == [6, 9, 10]
    assert rest == lines[1:]
    assert "from step 3 to 10" in capsys.readouterr().out


def test_evaluations_change_no_bit(small):
    often, _ = run(small("often", every=1))
    never, _ = run(small("never", every=10))
    assert content(often) == content(never)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_micro_batches_are_the_batch(small, optimizer):
    """Adam and Muon would hide a gradient of another size: norms are compared too."""
    found = []
    for micro in (8, 3, 1):
        trainer = Trainer(small(micro=micro, clip=1e9, optimizer=optimizer))
        found.append([[each.item() for each in trainer.advance()] for _ in range(4)])
    for each in found[1:]:
        assert each == pytest.approx(np.array(found[0]), rel=1e-4)


def test_models_are_evaluated_and_saved_at_x(small):
    settings = small(steps=20)
    trainer, lines = run(settings, until=9)
    x = emanest.iterate_state_dict(trainer.model, trainer.optimizer)
    saved = torch.load(f"{settings.out}/model.pt", weights_only=True)
    assert {k: bits(v) for k, v in saved.items()} == {k: bits(v) for k, v in x.items()}
    assert any(not torch.equal(v, x[k]) for k, v in trainer.model.state_dict().items())
    trainer.model.load_state_dict(saved)
    with torch.no_grad():
        batches = (batch_of(trainer.validation, settings, 0, k) for k in range(2))
        assert torch.stack([trainer.loss(*b) for b in batches]).mean().item() == lines[-1][3]


def test_the_schedule_is_that_of_every_group(small):
    settings = small(optimizer="muon", lr=0.02, adamw_lr=0.003)
    trainer = Trainer(settings)
    for step in range(6):
        rates = {group.get("base", "muon"): group["lr"] for group in trainer.optimizer.param_groups}
        factor = cosine(settings, step)
        assert rates == pytest.approx({"muon": 0.02 * factor, "adamw": 0.003 * factor})
        trainer.advance()
    assert [cosine(settings, step) for step in (1, 2, 10)] == pytest.approx([2 / 3, 1, 0.1])


def test_only_matrices_decay(small):
    matrices, vectors = Trainer(small()).optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}


def test_a_checkpoint_of_other_settings_is_refused(small):
    run(small(), until=3)
    with pytest.raises(ValueError, match="is of other settings: give another --out, or remove it"):
        run(small(lr=1.0))


def test_from_the_command_line_with_the_bytes_of_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"steps": 2, "every": 1, "layers": 1, "width": 8, "context": 8, "validation": 1}
    main([word for name, value in given.items() for word in (f"--{name}", str(value))])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1: loss 5.5")
    assert "validation at x 5." in second
    row = tokens(Settings(), "train")
    assert isinstance(row, np.memmap)
    assert b"import" in bytes(row[:100_000])
