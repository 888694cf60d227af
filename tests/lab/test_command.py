# SPDX-License-Identifier: MIT
"""The lab's command line: which runs it does, for how long, and which stored ones count."""

import dataclasses
import math
import time

import pytest
from shrunk import corpus, small, text

from examples.lab import __main__ as command
from examples.lab import training
from examples.lab.experiments import EXPERIMENTS
from examples.lab.experiments.sweep import Arm, Experiment, Stage
from examples.lab.runner import work

pytestmark = pytest.mark.usefixtures("made_up", "one_thread")


def experiment(name):
    arms = (Arm("plain", small(EXPERIMENTS["byte_lm"].arms[0].settings)),)
    return Experiment(name, "Does it?", arms, stages=(Stage((0, 1)),))


def test_the_command_line_lists_and_runs(tmp_path, monkeypatch, capsys):
    few = experiment("few")
    monkeypatch.setattr(command, "EXPERIMENTS", {"few": few})
    monkeypatch.setattr(command, "side_by_side", lambda each, there, *_: work(each, there) or True)
    results = ["--results", str(tmp_path / "results")]
    assert command.main(["list", *results]) == 0
    assert "0 of 2 runs" in capsys.readouterr().out
    assert command.main(["run", "few", *results]) == 0
    assert command.main(["list", *results]) == 0
    assert "done" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        command.main(["run", "nothing"])
    assert exit_.value.code == 2
    assert "few" in capsys.readouterr().err


@pytest.fixture
def two(monkeypatch):
    """Two experiments that the command line knows, and the calls that do their runs."""
    calls = []
    monkeypatch.setattr(command, "EXPERIMENTS", {name: experiment(name) for name in "ab"})

    def side_by_side(each, there, workers, seconds):
        calls.append((each.name, seconds))
        time.sleep(0.01)
        return True

    monkeypatch.setattr(command, "side_by_side", side_by_side)
    return calls


def test_the_minutes_are_those_of_all_experiments_together(two, tmp_path):
    results = ["--results", str(tmp_path / "results")]
    assert command.main(["run", "a", "b", "--minutes", "1", *results]) == 0
    (a, first), (b, second) = two
    assert (a, b) == ("a", "b")
    assert 60 >= first >= second + 0.01
    assert command.main(["run", "a", *results]) == 0
    assert two[-1] == ("a", math.inf)


def test_after_an_interruption_no_other_experiment_begins(two, tmp_path, monkeypatch, capsys):
    def interrupted(each, *_):
        two.append(each.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "side_by_side", interrupted)
    assert command.main(["run", "a", "b", "--results", str(tmp_path / "results")]) == 130
    assert two == ["a"]
    assert "goes on" in capsys.readouterr().err


def test_runs_on_other_data_of_the_same_name_do_not_count(two, tmp_path, monkeypatch):
    results = ["--results", str(tmp_path / "results")]
    found = []

    def side_by_side(each, there, *_):
        found.append(len(there.lines()))
        work(each, there)
        return True

    monkeypatch.setattr(command, "side_by_side", side_by_side)
    call = ["run", "a", *results]
    for digest in ("one", "one", "another"):
        made = dataclasses.replace(text(), digest=digest)
        monkeypatch.setattr(training, "loaded", lambda settings, made=made: made)
        assert command.main(call) == 0
    assert found == [0, 2, 0]


def test_the_demo_of_a_folder_counts_runs_of_its_files_as_they_are(tmp_path, monkeypatch):
    asked = []

    def side_by_side(each, there, *_):
        asked.append((each.arms[0].settings["data"]["path"], len(there.lines())))
        first = each.arms[0].settings | {"seed": 0}
        result = {"steps": [0], "loss": [1.0], "diverged": None}
        there.add("demo", first, result, training.loaded(first).digest)
        return True

    monkeypatch.setattr(command, "side_by_side", side_by_side)
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    call = ["demo", "--corpus", "text", "--results", str(tmp_path / "results")]
    for words in (None, None, "other words " * 99):
        if words:
            (tmp_path / "text" / "0.txt").write_text(words)
            training._loaded.cache_clear()
        assert command.main(call) == 0
    path = str(tmp_path / "text")
    assert asked == [(path, 0), (path, 1), (path, 0)]
