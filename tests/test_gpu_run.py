"""The run on a GPU, on a machine without one."""

import json
import os
import signal
import subprocess
import sys
import time
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import gpu_run
from bench.stages import Found, Settings, tests
from bench.stages import tiles as sweep
from emanest.kernels import tiles

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tmp_path):
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return Settings(tmp_path / "out", tmp_path / "work", tmp_path, "abc", small=True, brief=True)


@pytest.fixture
def stage(monkeypatch):
    """Makes a function a stage, which a fork then finds."""

    def make(work, seconds=20):
        module = types.SimpleNamespace(run=work)
        monkeypatch.setitem(sys.modules, "bench.stages.made", module)
        monkeypatch.setitem(gpu_run.STAGES, "made", gpu_run.Stage(seconds, "made"))

    return make


def test_a_rehearsal_runs_every_stage_to_its_end(tmp_path):
    """In its short form, with six kernels."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench.gpu_run", "--rehearse", "--brief", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in entries] == list(gpu_run.STAGES)
    assert [e["state"] for e in entries] == ["ok"] * len(entries), done.stdout
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= gpu_run.LINES
    assert done.stdout == (out / "summary.txt").read_text()
    assert len(list(out.iterdir())) <= 8


def test_what_a_stage_finds_is_a_line(settings, stage):
    stage(lambda settings: Found([f"at {settings.commit}"], {"x": 1}))
    entry = gpu_run.run("made", settings)
    assert (entry["state"], entry["lines"], entry["data"]) == ("ok", ["at abc"], {"x": 1})


def test_a_stage_that_raises_says_why(settings, stage):
    def work(settings):
        raise ValueError("no such tile\nmore")

    stage(work)
    entry = gpu_run.run("made", settings)
    assert entry["state"].startswith("failed")
    assert entry["lines"] == ["ValueError: no such tile"]
    assert "more" in (settings.out / "log.txt").read_text()


def test_a_stage_that_dies_has_failed(settings, stage):
    stage(lambda settings: os.kill(os.getpid(), signal.SIGKILL))
    assert gpu_run.run("made", settings)["state"] == "failed, status -9"


def test_a_stage_that_hangs_is_stopped_with_its_children(settings, stage, monkeypatch):
    pipe = os.pipe()

    def work(settings):
        os.close(pipe[0])
        # who holds the other end of the pipe is alive
        subprocess.Popen(["sleep", "60"], pass_fds=pipe[1:])
        os.write(pipe[1], b"!")
        time.sleep(60)

    # until the child is there
    monkeypatch.setattr(gpu_run, "wait", lambda *_: os.read(pipe[0], 1) != b"!")
    stage(work, seconds=1)
    assert gpu_run.run("made", settings)["state"] == "stopped after 1 s"
    os.close(pipe[1])
    assert os.read(pipe[0], 1) == b""
    os.close(pipe[0])


def test_a_summary_is_short_and_has_every_stage():
    entries = [
        {"stage": str(i), "state": "ok", "seconds": 1.0, "lines": [f"{i} {k} " + 400 * "x"] * n}
        for i, (k, n) in enumerate(
            zip("abcdefghijk", [0, 1, 2, 300, 5, 0, 0, 40, 3, 1, 1], strict=True)
        )
    ]
    lines = gpu_run.summary(entries, ["about"])
    assert len(lines) == gpu_run.LINES
    assert max(map(len, lines)) <= gpu_run.WIDTH
    assert [line for line in lines if not line.startswith(" ")] == [
        "about",
        *(f"{i}: ok, 1.0 s" for i in range(11)),
    ]
    # those that have little to say say all of it
    assert sum(line.startswith("  8 ") for line in lines) == 3


def test_failures_that_are_alike_are_one_line():
    def case(name, message):
        return ElementTree.Element("testcase", classname="tests.test_cuda", name=name), (
            ElementTree.Element("failure", message=message)
        )

    first = tests.group(*case("test_a_step[triton-1]", "RuntimeError: 12 of 30 at 0.5e-3\nmore"))
    second = tests.group(*case("test_a_step[cpp-2]", "RuntimeError: 1 of 3 at 7"))
    assert first == second == ("test_cuda::test_a_step", "RuntimeError", "# of # at #")


def test_every_test_that_needs_a_gpu_is_in_a_stage():
    """The stages name their files, since collecting all of them takes long."""
    marked = {p.name for p in ROOT.glob("tests/*.py") if "mark.gpu" in p.read_text()}
    assert marked - {"bad_input_stepped.py", Path(__file__).name} <= {
        Path(p).name for p in tests.PATHS
    }


def test_the_table_of_tiles_follows_the_times():
    """The large tile from 264 programs on, the small one where it would leave processors idle."""
    large, small = tiles.Tile(128, 128, 64, 8, 8, 3), tiles.Tile(64, 64, 64, 8, 4, 4)
    other = large._replace(warps=4)

    def rows(case, programs, *times):
        for tile, seconds in zip((large, small, other), times, strict=True):
            count = programs * (4 if tile == small else 1)
            yield {
                **{"product": "sym_mm", "shape": case, "tile": tile, "seconds": seconds},
                "programs": count,
            }

    measured = [
        *rows((1,), 1000, 1.0, 1.3, 1.2),
        *rows((2,), 264, 2.01, 2.1, 2.0),
        *rows((3,), 100, 1.5, 1.0, 1.4),
        *rows((4,), 20, 1.5, 1.0, 1.4),
    ]
    assert sweep.fitted(measured, 132) == [large._replace(programs=2.0), small]
    assert sweep.fitted(measured[:6], 132) == [large]
