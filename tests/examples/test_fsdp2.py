# SPDX-License-Identifier: MIT
"""examples/fsdp2.py, shrunk, on two processes: one process's run, resumed exactly, saved at x."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

import emanest
from examples import fsdp2
from examples.fsdp2 import Settings, main, processes, run
from fsdp import whole
from helpers import bits
from ranks import ranks

ROOT = Path(__file__).parents[2]
SMALL = {
    **{"layers": 1, "heads": 2, "width": 16, "context": 8, "vocabulary": 16},
    **{"batch": 8, "steps": 10, "every": 3},
}


def small(folder, name, **changes):
    return Settings(out=str(Path(folder, name)), **{**SMALL, **changes})


def content(trainer):
    """Bits of this process's shards of the parameters and of all state; numbers of the groups."""
    found = {}
    for name, p in trainer.model.named_parameters():
        for key, value in {"value": p.detach(), **trainer.optimizer.state[p]}.items():
            value = value.to_local() if isinstance(value, DTensor) else value
            found[name, key] = bits(value) if torch.is_tensor(value) else value
    return found, [group["lr"] for group in trainer.optimizer.param_groups]


def all_runs(folder):
    """Whole, interrupted after a step that wrote no checkpoint, and with more evaluations."""
    once, lines = run(small(folder, "whole"))
    run(small(folder, "parts"), until=8)
    parts, rest = run(small(folder, "parts"))
    with pytest.MonkeyPatch.context() as patch:
        # both gather and let go of weights, and would hide some that an evaluation leaves gathered
        patch.setattr(fsdp2, "get_model_state_dict", lambda *args, **options: {})
        patch.setattr(fsdp2.Trainer, "save", lambda trainer: None)
        often, _ = run(small(folder, "often", every=1))
    sharded = all(isinstance(p, DTensor) for p in once.model.parameters())
    expected = content(once)
    return lines, rest, content(parts) == expected, content(often) == expected, sharded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def alone(folder):
    """Of a model that is not sharded."""
    with processes("cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp2, "shard", lambda model, size, kind: model)
        return run(small(folder, "alone"))


@pytest.fixture(scope="module")
def together(folder):
    return ranks()(2, all_runs, str(folder))


def test_two_processes_are_one_to_rounding(alone, together):
    for lines, *_, sharded in together:
        assert sharded
        for line, expected in zip(lines, alone[1], strict=True):
            assert line == pytest.approx(expected, rel=1e-4)


def test_a_run_that_is_interrupted_ends_in_the_same_bits(together, folder):
    for lines, rest, resumed, *_ in together:
        assert resumed
        assert [line[0] for line in rest] == [9, 10]
        assert rest == lines[2:]
    # of several checkpoints the last is left
    assert [path.name for path in (folder / "parts").glob("step-*")] == ["step-00000010"]


def test_evaluations_change_no_bit(together):
    assert [often for *_, often, _ in together] == [True, True]


def test_the_model_is_saved_whole_and_at_x(folder):
    """By one process as by two; at step 6, where x is not y."""
    with processes("cpu"):
        alone, _ = run(small(folder, "alone at 6"), until=6)
        x = emanest.iterate_state_dict(alone.model, alone.optimizer)
        x, y = ({k: whole(v) for k, v in each.items()} for each in (x, alone.model.state_dict()))
    assert any(not torch.equal(v, x[k]) for k, v in y.items())
    saved = torch.load(Path(alone.settings.out, "model.pt"), weights_only=True)
    assert {k: bits(v) for k, v in saved.items()} == {k: bits(v) for k, v in x.items()}
    ranks()(2, stopped, str(folder))
    saved = torch.load(folder / "two at 6" / "model.pt", weights_only=True)
    torch.testing.assert_close(saved, x, rtol=1e-4, atol=1e-5)


def stopped(folder):
    run(small(folder, "two at 6"), until=6)


def test_one_process_goes_on_from_the_checkpoint_of_two(alone, folder):
    ranks()(2, changed_hands, str(folder))
    with processes("cpu"):
        trainer, lines = run(small(folder, "changed hands"))
    assert [line[0] for line in lines] == [6, 9, 10]
    assert lines[-1] == pytest.approx(alone[1][-1], rel=1e-4)
    assert trainer.step == 10


def changed_hands(folder):
    run(small(folder, "changed hands"), until=3)


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path):
    for error in ranks()(2, refused, str(tmp_path)):
        assert error == "batch must be a multiple of 2, got 3"


def refused(folder):
    with pytest.raises(ValueError, match="batch") as error:
        run(small(folder, "refused", batch=3))
    return str(error.value)


ARGUMENTS = ["--steps", "2", "--every", "2", "--width", "16", "--layers", "1", "--context", "4"]


def test_the_group_that_torchrun_describes_is_made_and_left(tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**given, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, str(value))
    main([*ARGUMENTS, "--out", str(tmp_path)])
    assert not torch.distributed.is_initialized()
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 2: loss ")


@pytest.mark.slow
def test_torchrun_runs_it(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "examples.fsdp2", *ARGUMENTS, "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    # one process prints
    assert [line for line in done.stdout.splitlines() if line.startswith("step")] == [
        done.stdout.splitlines()[-1]
    ]
