# SPDX-License-Identifier: MIT
"""The training of a run on a GPU, on a CPU and much smaller."""

import json
import math

import pytest
import torch

from bench import train_report
from bench.stages import ROOT, train
from bench.timed_run import TimedRun
from bench.train_settings import METHODS, Planned, Sizes, settings_of
from examples.lab.parallel import World
from helpers import host_never_waits
from test_gpu_run import settings_in

LRS = {"adamw": (0.003, 0.02), "muon": (0.01, 0.04)}
SIZES = Sizes(1, 16, 2, 8, 8, None, 0.1, (6, 1), (12, 3), (1, 8), 2**18, LRS, None)
RUNS = [
    *(("adamw", "none", 0.003, 6), ("adamw", "none", 0.02, 6)),
    *(("muon", "none", 0.01, 6), ("muon", "none", 0.04, 6)),
    *(("adamw", "none", 0.02, 12), ("adamw", "ema-nesterov", 0.02, 12)),
    *(("muon", "none", 0.04, 12), ("muon", "ema-nesterov", 0.04, 12)),
]


@pytest.fixture(autouse=True, scope="module")
def threads():
    """One, as a stage of small sizes sets it for its process; put back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training that nothing interrupts finds and leaves; and where."""
    settings = settings_in(tmp_path_factory.mktemp("whole"))
    found, path = train.run(settings, sizes=SIZES, device="cpu"), settings.out / train.NAME
    return found, train_report.read(path), path


def names(lines):
    return [
        tuple(line["key"][name] for name in ("base", "method", "lr", "steps")) for line in lines
    ]


def numbers(line):
    """What a repeated run has in common with the first."""
    return {name: line[name] for name in ("name", "key", "at_x", "at_y", "train", "diverged")}


def test_the_best_lr_of_short_runs_is_that_of_the_long_ones(whole):
    found, lines, _ = whole
    assert names(lines) == RUNS
    assert found.data == {"left": [], "lr": {"adamw": 0.02, "muon": 0.04}}
    for line in lines:
        assert line["at_x"][-1] < line["at_x"][0] - 0.05, line["name"]
        assert len(line["train"]) == line["key"]["steps"] == line["steps"][-1]
        assert 0 < line["share"] < 1
        assert (line["commit"], line["diverged"]) == ("abc", None)
    # the same weights and batches, whatever was trained before on the same module
    assert len({line["at_x"][0] for line in lines}) == 1
    assert lines[1]["train"][0] == lines[4]["train"][0] == lines[6]["train"][0]
    plain, ahead = lines[4:6]
    assert ahead["train"][:3] == plain["train"][:3]
    assert ahead["train"][-1] != plain["train"][-1]


def test_a_training_that_was_cut_off_goes_on_with_the_other_runs(whole, settings, monkeypatch):
    _, lines, _ = whole
    path = settings.out / train.NAME
    # two were brought along, two are here, and one was cut off while it was written. Early ones
    # would change the best lr: of another commit, and of when the start was no choice
    lower = {**lines[0], "final": {**lines[0]["final"], "loss_x": 0.0}}
    before = {name: value for name, value in lower["key"].items() if name != "std"}
    others = [{**lower, "commit": "def"}, {**lower, "key": before}]
    kept, strange = ([json.dumps(line) for line in each] for each in (lines, others))
    (settings.carry / train.NAME).write_text("\n".join([*strange, *kept[1:3]]) + "\n")
    path.write_text("\n".join([*kept[3:5], kept[5][:40]]))
    done = []
    usual = train.Trainer.train
    monkeypatch.setattr(
        train.Trainer, "train", lambda self, planned: done.append(planned) or usual(self, planned)
    )
    found = train.run(settings, sizes=SIZES, device="cpu")
    assert [each[:4] for each in done] == [RUNS[0], *RUNS[5:]]
    assert found.lines[0].startswith("4 of 8 runs were there")
    after = train_report.read(path)
    assert after[:2] == others
    assert sorted(map(numbers, after[2:]), key=str) == sorted(map(numbers, lines), key=str)
    # nothing is left to do
    done.clear()
    train.run(settings, sizes=SIZES, device="cpu")
    assert done == []


def test_bases_that_are_named_are_the_only_ones(whole, settings):
    """With their lines there, so that nothing is trained."""
    *_, path = whole
    (settings.carry / train.NAME).write_text(path.read_text())
    found = train.run(settings, "adamw", sizes=SIZES, device="cpu")
    assert found.data == {"left": [], "lr": {"adamw": 0.02}}
    assert found.lines[0].startswith("4 of 4 runs were there")


def test_runs_that_would_not_end_in_time_are_named(settings):
    found = train.run(settings._replace(seconds=0.0), sizes=SIZES, device="cpu")
    assert found.lines[0] == (
        "not done: adamw with none at lr 0.003, 6 steps; adamw with none at lr 0.02, 6 steps; "
        "muon with none at lr 0.01, 6 steps; muon with none at lr 0.04, 6 steps; "
        "adamw, 12 steps: its lr is not known; muon, 12 steps: its lr is not known"
    )
    assert (settings.out / train.NAME).read_text() == ""


def test_a_run_that_diverges_is_never_the_best(settings):
    sizes = SIZES._replace(lrs={"adamw": (1e38, 0.003)}, short=(3, 1), long=(4, 1))
    found = train.run(settings, sizes=sizes, device="cpu")
    assert found.data["lr"] == {"adamw": 0.003}
    gone = train_report.read(settings.out / train.NAME)[0]
    assert gone["diverged"] <= 3
    assert gone["final"]["loss_x"] is None
    assert "1e+38 nan" in found.lines[-1]


def test_a_compiler_that_fails_leaves_the_runs(settings, capfd):
    lrs = {"adamw": (0.003,)}
    sizes = SIZES._replace(compiler="no such one", lrs=lrs, short=(2, 1), long=(3, 1))
    found = train.run(settings, sizes=sizes, device="cpu")
    assert "not compiled: " in found.lines[0]
    assert len(train_report.read(settings.out / train.NAME)) == 3
    assert "no such one" in capfd.readouterr().err


def test_settings_are_those_of_the_runs_that_are_stored():
    """By the numbers, so that new lines compare with them."""
    long, short = (
        settings_of(Planned("muon", "ema-nesterov", 0.02, steps, 2), Sizes())
        for steps in (1000, 250)
    )
    assert long["lookahead"] == {
        **{"name": "ema_nesterov", "stepsize": 0.5, "decay": 0.98},
        **{"warmup": 250, "rest": 800},
    }
    assert long["schedule"] == {"name": "trapezoid", "warmup": 50, "decay": 250}
    assert short["schedule"] == {"name": "trapezoid", "warmup": 25, "decay": 62}
    assert long["optimizer"] == {
        **{"name": "muon", "lr": 0.02, "weight_decay": 0.01},
        "adamw": {"lr": pytest.approx(0.006)},
    }


def timed(device="cpu", steps=12):
    """A run with a lookahead between its 3rd and its 9th step."""
    planned = Planned("adamw", "ema-nesterov", 0.01, steps, steps)
    settings = settings_of(planned, SIZES, [str(ROOT / "examples")])
    return TimedRun(settings, World(0, 1, torch.device(device)))


def test_a_timed_run_has_every_step_and_the_loss_at_y():
    run = timed()
    while not run.done:
        run.advance()
    assert len(run.train) == len(run.step_ms) == len(run.optimizer_ms) == 12
    assert all(0 < part < whole for part, whole in zip(run.optimizer_ms, run.step_ms, strict=True))
    # evaluated after every one
    assert run.train == pytest.approx(run.curves["train"], rel=1e-5)
    at_x = run.curves["loss"]
    apart = [x != y for x, y in zip(at_x, run.at_y, strict=True)]
    assert apart == [3 <= step < 9 for step in range(13)]
    final = run.final()
    assert (final["loss_x"], final["loss_y"]) == (at_x[-1], run.at_y[-1])
    assert final["optimizer_bytes_per_parameter"] == 12


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits():
    run = timed("cuda")
    # what the first ones make
    run.take_step()
    run.take_step()
    with host_never_waits():
        run.take_step()
        run.take_step()


def line(method, at_x):
    """Of a run that was evaluated every tenth step of 30."""
    key = {"base": "adamw", "method": method, "lr": 0.01, "steps": 30}
    key |= {"layers": 1, "width": 16, "batch": 4, "context": 8, "seed": 0}
    final = {"loss_x": at_x[-1], "loss_y": at_x[-1], "step_ms": 1.0, "optimizer_ms": 0.1}
    steps = list(range(0, 10 * len(at_x), 10))
    return {
        **{"name": Planned(**{n: key[n] for n in Planned._fields[:4]}, evaluations=3).name},
        **{"key": key, "final": final, "share": 0.1, "corpus": "made up", "steps": steps},
        **{"at_x": at_x, "at_y": at_x, "train": [at_x[0]] * steps[-1]},
    }


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([5.0, 3.0, 2.0, 1.0], "ends 1.5000 below adamw, lr 0.01. Same loss 15 steps earlier."),
        ([5.0, 3.0, 2.5, 1.0], "ends 1.5000 below adamw, lr 0.01. Same loss 10 steps earlier."),
        ([5.0, 3.0, 2.8, 2.5], "ends 0.0000 above adamw, lr 0.01. Same loss 0 steps earlier."),
        ([5.0, 3.0, 2.8, 2.6], "ends 0.1000 above adamw, lr 0.01."),
        # what it had before and lost again does not count
        ([5.0, 2.0, 2.8, 2.6], "ends 0.1000 above adamw, lr 0.01."),
        ([5.0, 2.0, 3.0, 2.0], "ends 0.5000 below adamw, lr 0.01. Same loss 5 steps earlier."),
        ([5.0, None], "diverged."),
    ],
)
def test_a_report_says_what_a_lookahead_saves(losses, words):
    lines = [line("none", [5.0, 4.0, 3.0, 2.5]), line("ema-nesterov", losses)]
    about = "adamw + ema-nesterov, lr 0.01"
    assert train_report.summary(lines)[0] == f"{about} {words}"


def test_a_run_that_ended_early_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    whole, gone = [5.0, 4.0, 3.0, 2.5], [5.0, None]
    for k, each in enumerate([(whole, gone), (gone, whole)]):
        lines = [line(method, losses) for method, losses in zip(METHODS, each, strict=True)]
        train_report.draw(lines, tmp_path / f"{k}.png")
        assert (tmp_path / f"{k}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_has_every_run_and_draws_the_long_ones(whole, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    found, lines, path = whole
    capsys.readouterr()
    train_report.main([str(path), str(tmp_path / "train.png")])
    out = capsys.readouterr().out
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
    assert sum(line.startswith(("| adamw", "| muon")) for line in out.splitlines()) == len(RUNS)
    gap = lines[5]["at_x"][-1] - lines[4]["at_x"][-1]
    words = f"ends {abs(gap):.4f} {'below' if gap < 0 else 'above'} adamw, lr 0.02."
    assert f"adamw + ema-nesterov, lr 0.02 {words}" in out
    assert not math.isnan(gap)
    assert all(line in out for line in found.lines[1:])
