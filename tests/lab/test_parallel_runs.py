# SPDX-License-Identifier: MIT
"""Runs of the lab on two processes: the losses of one, one line each, resumed bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from shrunk import images, small, text

from examples.lab import data
from examples.lab.experiments import EXPERIMENTS
from examples.lab.experiments.sweep import Arm, Experiment, Stage
from examples.lab.parallel import processes
from examples.lab.runner import do, work
from examples.lab.store import Store, read
from examples.lab.training import Run
from ranks import ranks

ARMS = {
    "nanogpt": EXPERIMENTS["figure_4"].arms[1],
    "llama": EXPERIMENTS["figure_7"].arms[1],
    "resnet": EXPERIMENTS["nala_resnet18_cifar10"].arms[5],
}


def settings(name):
    return small(ARMS[name].settings, steps=6, micro=1)


def made_up():
    torch.set_num_threads(1)
    data.DATA["made up text"], data.DATA["made up images"] = text, images


class Killed(Exception):
    pass


def interrupted(name, how, folder):
    """The result of a run, and that of one which ended in the middle and went on."""
    made_up()
    with processes() as world:
        other, path = Path(folder) / "other.pt", Path(folder) / "run.pt"
        whole = do(settings(name), other, world=world, how=how).result()
        advance = Run.advance

        def until(run):
            if run.step == 4:  # the last evaluation was at 3
                raise Killed
            advance(run)

        Run.advance = until
        with pytest.raises(Killed):
            do(settings(name), path, world=world, how=how)
        Run.advance = advance
        assert path.exists()
        return whole, do(settings(name), path, world=world, how=how).result()


@pytest.mark.parametrize(
    ("name", "how"),
    [("nanogpt", "ddp"), ("nanogpt", "fsdp2"), ("llama", "fsdp2"), ("resnet", "ddp")],
)
def test_two_processes_go_on_where_they_were(name, how, tmp_path):
    made_up()
    expected = do(settings(name), tmp_path / "none").result()
    for whole, resumed in ranks()(2, interrupted, name, how, str(tmp_path)):
        assert json.dumps(resumed) == json.dumps(whole)
        assert whole["steps"] == expected["steps"]
        if name != "resnet":  # whose normalisation sees half of each batch
            assert whole["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert whole["train"] == pytest.approx(expected["train"], rel=1e-4)


def worked(folder):
    made_up()
    arms = (Arm("plain", small(ARMS["nanogpt"].settings)),)
    few = Experiment("few", "Does it?", arms, stages=(Stage((0, 1)),))
    with processes() as world:
        work(few, Store(Path(folder) / "results", Path(folder) / "work"), False, world, how="ddp")


def test_two_processes_write_one_line_a_run(tmp_path):
    ranks()(2, worked, str(tmp_path))
    found = read(tmp_path / "results" / "few.jsonl")
    assert [line["settings"]["seed"] for line in found] == [0, 1]
