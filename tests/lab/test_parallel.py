# SPDX-License-Identifier: MIT
"""The lab's runs on several processes: DDP and FSDP2 against one process, and torchrun itself."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

import emanest
from examples.lab.models import MODELS, make
from examples.lab.parallel import ParallelError, World, distribute, inside, processes
from ranks import ranks

ROOT = str(pathlib.Path(__file__).parents[2])
ALONE = World(0, 1, torch.device("cpu"))
BASES = {"adamw": emanest.AdamW, "muon": emanest.Muon}


def losses(name, how, base, world, steps=3, dtype=None):
    """Of the whole batch before each step, at y, and after it, at x; whether weights are parts."""
    model = distribute(make({"name": name, **MODELS[name].small}, 0), how, world, dtype)
    parts = {isinstance(p, DTensor) for p in model.parameters()}
    groups = emanest.split_params(
        model, inside(model).split_rules, verbose=False, adamw={"lr": 1e-2}
    )
    if base == "adamw":
        groups = model.parameters()
    optimizer = BASES[base](groups, lr=1e-2, lookahead=emanest.EMANesterov())
    at_y, at_x = [], []
    for t in range(steps):
        tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(t))
        inputs, targets = world.share(tokens[:, :-1], tokens[:, 1:])
        loss = cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())
        at_y.append(world.mean(loss.detach()).item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # what an evaluation leaves behind must not reach the next step
        with optimizer.at_iterate(), torch.no_grad():
            loss = cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())
            at_x.append(world.mean(loss).item())
    return at_y + at_x, parts


def together(*args, **options):
    with processes() as world:
        assert world.size == 2
        return losses(*args, world, **options)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["gpt2", "nanogpt_124m", "nanogpt_162m", "llama_60m"])
def test_two_processes_have_the_losses_of_one(name, how, base):
    expected, _ = losses(name, "none", base, ALONE)
    for found, parts in ranks()(2, together, name, how, base):
        assert found == pytest.approx(expected, abs=1e-5)
        assert parts == {how == "fsdp2"}


def sharded():
    with processes() as world:
        model = distribute(make({"name": "gpt2", **MODELS["gpt2"].small}, 0), "fsdp2", world)
        return [name for name, m in model.named_modules() if isinstance(m, FSDPModule)]


def test_blocks_are_sharded_one_by_one():
    assert ranks()(2, sharded) == [["", "blocks.0", "blocks.1"]] * 2


def mixed():
    with processes() as world:
        return losses("llama_60m", "fsdp2", "adamw", world, dtype=torch.bfloat16)


def test_weights_are_gathered_in_the_dtype_that_is_asked_for():
    expected, _ = losses("llama_60m", "none", "adamw", ALONE)
    for found, _ in ranks()(2, mixed):
        assert found != pytest.approx(expected, abs=1e-5)
        assert found == pytest.approx(expected, abs=0.05)


def shares():
    with processes() as world:
        (part,) = world.share(torch.arange(6))
        loss = torch.tensor(world.rank + 1, dtype=torch.float64)
        total = world.total(loss).item(), world.total([1, world.rank]).tolist()
        # what was given is as it was
        assert loss == world.rank + 1
        return part.tolist(), world.first, *total, world.mean(loss).item()


def test_each_process_has_its_share_and_sums_are_of_all():
    assert ranks()(2, shares) == [
        ([0, 1, 2], True, 3.0, [2.0, 1.0], 1.5),
        ([3, 4, 5], False, 3.0, [2.0, 1.0], 1.5),
    ]


def test_one_process_without_torchrun_is_a_world_of_its_own():
    with processes("cpu") as world:
        assert world == (0, 1, torch.device("cpu"))
        assert world.first
        assert world.share(torch.arange(3))[0].tolist() == [0, 1, 2]
        assert world.mean(2.5).item() == 2.5
        assert not dist.is_initialized()


# ---- errors -------------------------------------------------------------------------------------


def errors():
    with processes() as world:
        found = []
        for call in (
            lambda: distribute(torch.nn.Linear(2, 2), "none", world),
            lambda: distribute(torch.nn.Linear(2, 2), "ddp", world, torch.bfloat16),
            lambda: world.share(torch.arange(4), torch.arange(5)),
        ):
            with pytest.raises(ParallelError) as error:
                call()
            found.append(str(error.value))
        return found


def test_processes_that_cannot_train_together_are_told_so():
    for none, dtype, share in ranks()(2, errors):
        assert none == "how is 'none' with 2 processes: choose ddp or fsdp2"
        assert dtype == "dtype is of how='fsdp2' alone, got how='ddp': use torch.autocast"
        assert share == "batch must be a multiple of 2, the processes, got 5"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("ddp", ["'ddp'", "torchrun"]),
        ("fsdp2", ["'fsdp2'", "torchrun"]),
        ("fsdp", ["fsdp2", "'fsdp'"]),
    ],
)
def test_a_way_that_cannot_be_gone_is_an_error_of_one_line(how, words):
    with pytest.raises(ParallelError) as error:
        distribute(torch.nn.Linear(2, 2), how, ALONE)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_without_a_way_to_talk_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        ParallelError, match="device must be one of cpu, cuda under torchrun, got 'me"
    ):
        processes("meta").__enter__()


# ---- torchrun -----------------------------------------------------------------------------------

PROGRAM = """
import torch
from examples.lab.models import MODELS, make
from examples.lab.parallel import distribute, processes

torch.set_num_threads(1)
with processes("cpu") as world:
    model = distribute(make({"name": "llama_60m", **MODELS["llama_60m"].small}, 0), "fsdp2", world)
    (inputs,) = world.share(torch.arange(16).view(2, 8))
    total = world.total(model(inputs).detach().square().sum())
    if world.first:
        print(world.size, f"{total.item():.3f}")
assert not torch.distributed.is_initialized()
"""


def test_torchrun_starts_the_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=400,  # of a machine that does much else, most goes into importing torch
    )
    assert done.returncode == 0, done.stderr
    model = make({"name": "llama_60m", **MODELS["llama_60m"].small}, 0)
    expected = model(torch.arange(16).view(2, 8)).square().sum().item()
    assert done.stdout.split() == ["2", f"{expected:.3f}"]
