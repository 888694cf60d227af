# SPDX-License-Identifier: MIT
"""The runner and the store of the lab: every run once, whoever does it and however it ends."""

import io
import json
import math
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from shrunk import corpus, small

import ranks
from examples.lab.experiments import EXPERIMENTS
from examples.lab.experiments.sweep import Arm, Experiment, Stage, run
from examples.lab.runner import Progress, side_by_side, work
from examples.lab.settings import key, merged
from examples.lab.store import Store, commit, read

pytestmark = pytest.mark.usefixtures("made_up", "one_thread")

ADAMW, AHEAD = (arm.settings for arm in EXPERIMENTS["byte_lm"].arms[:2])


def experiment(steps=3, name="few"):
    arms = Arm("plain", small(ADAMW, steps)), Arm("ahead", small(AHEAD, steps), "plain")
    return Experiment(name, "Does it?", arms, stages=(Stage((0, 1, 2)),))


def store(folder):
    return Store(folder / "results", folder / "work")


def lines(folder):
    return {line["key"]: line for line in read(folder / "results" / "few.jsonl")}


def on_disk(folder, steps):
    settings = {**small(ADAMW, steps), "data": corpus(folder)}
    settings["model"]["vocabulary"] = 256
    arms = [Arm("plain", settings), Arm("more", merged(settings, {"optimizer": {"lr": 0.01}}))]
    return Experiment("few", "Does it?", tuple(arms), stages=(Stage((0, 1, 2)),))


def test_every_run_is_done_once_and_stored(tmp_path):
    few = experiment()
    work(few, store(tmp_path))
    found = read(tmp_path / "results" / "few.jsonl")
    assert [line["key"] for line in found] == [key(s) for s in few.runs(store(tmp_path))]
    assert len(found) == len(lines(tmp_path)) == 6
    for line in found:
        assert key(line["settings"]) == line["key"]
        assert set(line["where"]) == {"commit", "processor", "torch", "python", "data"}
    before = (tmp_path / "results" / "few.jsonl").read_bytes()
    work(few, store(tmp_path))
    assert (tmp_path / "results" / "few.jsonl").read_bytes() == before


def test_a_run_of_another_experiment_is_not_done_again(tmp_path):
    work(experiment(), store(tmp_path))
    work(experiment(name="same"), store(tmp_path))
    assert not (tmp_path / "results" / "same.jsonl").exists()


def test_two_processes_do_not_write_one_run(tmp_path):
    few = on_disk(tmp_path, steps=20)
    out = io.StringIO()
    assert side_by_side(few, store(tmp_path), workers=2, out=out)
    found = read(tmp_path / "results" / "few.jsonl")
    assert len(found) == len({line["key"] for line in found}) == 6
    assert "few: 6 of 6 runs" in out.getvalue()
    alone = tmp_path / "alone"
    work(few, store(alone))
    assert lines(alone) == lines(tmp_path)


def test_lines_of_another_commit_can_be_set_aside(tmp_path):
    few, there = experiment(), store(tmp_path)
    work(few, there)
    same, other = (Store(there.folder, there.work, each) for each in (commit(), "another"))
    assert len(same.lines()) == 6
    assert not other.lines()


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    few, there = experiment(), store(tmp_path)
    first = few.runs(there)[0]
    with there.claimed(first) as mine, store(tmp_path).claimed(first) as theirs:
        assert mine
        assert not theirs
    with there.claimed(first) as mine:
        assert mine
    there.add("few", first, {}, "digest")
    with there.claimed(first) as mine:
        assert not mine


def killed(few, folder):
    """Do the runs in a process, and kill it once the first of them has been saved on the way."""
    process = ranks.context().Process(target=saving, args=(few, folder))
    process.start()
    end = time.monotonic() + 60
    while not list((folder / "work").glob("*.pt")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def saving(few, folder):
    from examples.lab import runner

    runner.SAVE_EVERY = 0.0
    runner.work(few, store(folder))


def test_a_process_that_was_killed_leaves_nothing_behind(tmp_path):
    few = on_disk(tmp_path, steps=60)
    killed(few, tmp_path)
    work(few, store(tmp_path))
    alone = tmp_path / "alone"
    work(few, store(alone))
    assert json.dumps(lines(tmp_path), sort_keys=True) == json.dumps(lines(alone), sort_keys=True)
    assert not list((tmp_path / "work").glob("*.pt"))


def test_a_run_is_not_begun_by_one_commit_and_ended_by_another(tmp_path, monkeypatch):
    few, there = experiment(), store(tmp_path)
    first = few.runs(there)[0]
    before = there.unfinished(first)
    assert there.unfinished(first) == before
    monkeypatch.setattr("examples.lab.store.commit", lambda: "another")
    assert there.unfinished(first) != before


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    few = experiment()
    work(few, store(tmp_path))
    path, whole = tmp_path / "results" / "few.jsonl", lines(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    assert len(lines(tmp_path)) == 5
    work(few, store(tmp_path))
    assert lines(tmp_path) == whole
    assert path.read_bytes().count(b"\n") == 7


@pytest.fixture
def forks(monkeypatch):
    """Workers are forks, which need not import torch; ``test_two_processes...`` has them anew."""
    found = SimpleNamespace(get_context=lambda how: ranks.context())
    monkeypatch.setattr("examples.lab.runner.multiprocessing", found)


@pytest.mark.usefixtures("forks")
def test_a_time_that_is_over_begins_no_run(tmp_path):
    few = on_disk(tmp_path, steps=2)
    assert not side_by_side(few, store(tmp_path), workers=1, seconds=0, out=io.StringIO())
    assert not store(tmp_path).lines()


@pytest.mark.usefixtures("forks")
def test_an_interruption_ends_the_workers_and_is_passed_on(tmp_path, monkeypatch):
    few, show = on_disk(tmp_path, steps=100_000), Progress.show

    def interrupted(progress, out, last=False):
        if list((tmp_path / "work").glob("*.lock")):  # a worker is at a run
            raise KeyboardInterrupt
        return show(progress, out, last)

    monkeypatch.setattr(Progress, "show", interrupted)
    # other tests keep processes of their own
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        side_by_side(few, store(tmp_path), workers=1, out=io.StringIO())
    assert not set(multiprocessing.active_children()) - before
    assert not store(tmp_path).lines()


def test_progress_tells_what_is_left(tmp_path):
    few, there, out = experiment(), store(tmp_path), io.StringIO()
    progress = Progress(few, there)
    for settings in few.runs(there)[:2]:
        there.add("few", settings, {"loss": [1.0], "diverged": None}, "digest")
    progress.begin -= 60
    assert not progress.show(out)
    assert out.getvalue() == "few: 2 of 6 runs, 1.0 min, 2 min left\n"


def stored(few, folder, loss):
    """Lines whose final loss is ``loss(factor, seed)``, until no run is due."""
    there, arm = store(folder), few.arms[0]
    by_key = {
        key(run(arm, 2 ** (k / 2), seed)): (2 ** (k / 2), seed)
        for k in range(-9, 10)
        for seed in range(5)
    }
    for _ in range(99):
        due = [s for s in few.runs(there) if there.find(s) is None]
        if not due:
            return few.found(arm, there.lines())
        for settings in due:
            value = loss(*by_key[key(settings)])
            there.add("few", settings, {"loss": [value], "diverged": None}, "digest")
    raise AssertionError("runs are always due")


def sweep(*stages):
    stages = stages or (Stage((0,)), Stage((1, 2), around=1), Stage((3, 4), around=0))
    arms = (Arm("plain", small(ADAMW)),)
    return Experiment("few", "Does it?", arms, factors=(0.5, 1.0, 2.0), stages=stages)


def test_later_seeds_are_spent_where_the_loss_is_low(tmp_path):
    # seed 0 finds 1; with more seeds 2 is lower
    losses = {0.5: (3, 3, 3), 1.0: (1, 3, 3), 2.0: (1.5, 1, 1, 1, 1)}
    found = stored(sweep(), tmp_path, lambda factor, seed: float(losses[factor][seed]))
    assert (found.best, found.factors, found.seeds) == (2.0, (2.0,), (0, 1, 2, 3, 4))
    assert found.complete
    assert len(store(tmp_path).lines()) == 3 * 3 + 2


def test_new_factors_lie_half_way_to_the_neighbours(tmp_path):
    few = sweep(Stage((0,)), Stage((), around=1, finer=True), Stage((1,), around=0))
    # lowest at the root of 2 among those that are tried
    found = stored(few, tmp_path, lambda factor, seed: abs(math.log2(factor) - 0.45))
    assert found.best == pytest.approx(2**0.5)
    assert sorted(s["seed"] for s in few.runs(store(tmp_path))) == [0] * 5 + [1]


@pytest.mark.parametrize(("way", "best", "count"), [(1, 8.0, 5), (-1, 0.125, 5)])
def test_a_grid_grows_twice_where_its_end_is_best(way, best, count, tmp_path):
    found = stored(sweep(), tmp_path, lambda factor, seed: 1000.0 - way * factor - seed)
    assert found.best == best
    # at the first stage all, at the second one neighbour, at the third none
    assert len(store(tmp_path).lines()) == count + 2 * 2 + 2


def test_a_run_that_diverged_is_never_the_best(tmp_path):
    def loss(factor, seed):
        return None if factor < 2 else 5.0

    assert stored(sweep(), tmp_path, loss).best == 2.0


def test_every_learning_rate_is_multiplied():
    settings = {"optimizer": {"name": "muon", "lr": 0.02, "adamw": {"lr": 0.006, "eps": 1}}}
    assert run(Arm("", settings), 0.5, 3) == {
        "optimizer": {"name": "muon", "lr": 0.01, "adamw": {"lr": 0.003, "eps": 1}},
        "seed": 3,
    }
