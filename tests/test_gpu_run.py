# SPDX-License-Identifier: MIT
"""The run on a GPU, on a machine without one."""

import collections
import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_run
from bench.cases import CASES
from bench.devices import surroundings
from bench.stages import Found, Settings, blocks, cases, set_up, tests, tools
from bench.stages import tiles as sweep
from emanest.kernels import tiles

ROOT = Path(__file__).parents[1]


def settings_in(folder):
    """Of a stage, in new folders."""
    folders = [folder / name for name in ("out", "work", "carry")]
    for each in folders:
        each.mkdir()
    return Settings(*folders, "abc", small=True, brief=True, seconds=30.0)


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


@pytest.fixture
def stage(monkeypatch):
    """Makes a function a stage, which a fork then finds."""

    def make(work, seconds=20):
        module = types.SimpleNamespace(run=work)
        monkeypatch.setitem(sys.modules, "bench.stages.made", module)
        monkeypatch.setitem(gpu_run.STAGES, "made", gpu_run.Stage(seconds, "made"))

    return make


# as ``python -m bench.gpu_run``, whose stages are forks: none reads all of Triton for its hash
REHEARSAL = """
import runpy, triton.runtime.cache
triton.runtime.cache.triton_key()
runpy.run_module("bench.gpu_run", run_name="__main__", alter_sys=True)
"""


def test_a_rehearsal_runs_every_stage_to_its_end(tmp_path):
    """In its short form, with six kernels."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", REHEARSAL, "--rehearse", "--brief", "--out", str(out)]
    command += ["--work", str(tmp_path / "work"), "--carry", str(tmp_path / "carry")]
    # threads that wait for each other take time from the other tests
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in entries] == list(gpu_run.STAGES)
    assert [e["state"] for e in entries] == ["ok"] * len(entries), done.stdout
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= gpu_run.LINES
    assert done.stdout == (out / "summary.txt").read_text()
    assert len(list(out.iterdir())) <= 8


def test_training_is_a_stage_that_is_asked_for(tmp_path, monkeypatch):
    """It takes as long as all that is worth more."""
    ran = []
    entry = {"state": "ok", "seconds": 1.0, "lines": []}
    monkeypatch.setattr(
        gpu_run, "run", lambda name, *_: ran.append(name) or {"stage": name, **entry}
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--commit", "abc"]
    gpu_run.main(folders)
    assert ran == [name for name in gpu_run.STAGES if not name.startswith("train")]
    gpu_run.main([*folders, "--stages", "set-up", "train"])
    assert ran[-2:] == ["set-up", "train"]


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


def test_a_stage_has_the_time_of_its_limit_but_a_moment(settings, stage):
    """In which it tells what it has found."""
    stage(lambda settings: Found([], {"seconds": settings.seconds}), seconds=20)
    assert gpu_run.run("made", settings)["data"] == {"seconds": 8}


def test_what_a_stage_leaves_running_is_stopped(settings, stage):
    pipe = os.pipe()

    def work(settings):
        subprocess.Popen(["sleep", "60"], pass_fds=pipe[1:])
        return Found([])

    stage(work)
    assert gpu_run.run("made", settings)["state"] == "ok"
    os.close(pipe[1])
    assert os.read(pipe[0], 1) == b""
    os.close(pipe[0])


def test_emanest_is_not_imported_before_the_stages():
    """They would not find an extension that the first one puts in its place."""
    words = """
        import sys, unittest.mock
        sys.modules |= {name: unittest.mock.MagicMock() for name in ("torch", "torch.profiler")}
        import bench.gpu_run
        sys.exit(any(name.startswith("emanest") for name in sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(words)], cwd=ROOT)
    assert done.returncode == 0


def test_tests_that_take_too_long_are_interrupted(monkeypatch):
    there, usual = os.pipe(), subprocess.Popen.wait

    def wait(process, seconds=None):
        if seconds is None:
            return usual(process)
        assert (os.read(there[0], 1), seconds) == (b"!", 5)
        raise subprocess.TimeoutExpired("pytest", seconds)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    words = f"""
        import os, signal, time
        # whoever started the tests may have it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            os.write({there[1]}, b"!")
            time.sleep(60)
        except KeyboardInterrupt:
            raise SystemExit(7)
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(words)]
    assert tests.interrupted(command, 5, pass_fds=there) == 7


def test_chunks_are_compared_after_as_many_steps(monkeypatch):
    """However many are taken while they are timed."""
    repeats = iter((3, 5))
    drawn = blocks.drawn
    monkeypatch.setattr(blocks, "drawn", lambda shapes, device, *more: drawn(shapes, "cpu", *more))
    monkeypatch.setattr(blocks, "seconds", lambda step, _: [step() for _ in range(next(repeats))])
    (_, first), (_, second) = (blocks.measured([(3, 5)], torch.float32, 3) for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_a_part_of_the_set_up_that_fails_leaves_the_others(settings, monkeypatch):
    (settings.carry / "triton.tar.xz").write_text("no archive")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(settings.work / "triton"))
    monkeypatch.setattr(set_up, "hash_of", str)
    monkeypatch.setattr(set_up, "_extension", lambda *_: "extension: there")
    monkeypatch.setattr(set_up, "_memory", lambda *_: "80 GiB free")
    found = set_up.run(settings)
    assert not found.ok
    assert found.lines[1].startswith("kernels: ReadError")
    assert found.lines[2:] == ["extension: there", "peers: none brought along", "80 GiB free"]


def test_an_extension_that_does_not_load_is_built(settings, monkeypatch):
    name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    old = settings.work / "emanest" / name
    old.parent.mkdir()
    old.write_text("old")
    (settings.carry / name).write_text("new")
    monkeypatch.setattr(set_up, "ROOT", settings.work)
    monkeypatch.setattr(set_up, "_built", lambda settings, reason: f"built: {reason}")
    monkeypatch.setitem(sys.modules, "emanest.extension.loaded", None)
    with open(old) as loaded:
        assert set_up._extension(settings, {}).startswith("built: ")
        # whoever has loaded the one that was there keeps it
        assert (old.read_text(), loaded.read()) == ("new", "old")


def test_tools_see_tensors_and_end_within_the_limit(settings, monkeypatch):
    """Accesses beyond a tensor would lie within a block of torch's."""
    calls, clock = [], [100.0]
    monkeypatch.setattr(tools.time, "monotonic", lambda: clock[0])

    def run(command, timeout, **more):
        # the first is quick, the second hangs
        calls.append({"timeout": timeout, **more})
        clock[0] += (5.0, timeout, 0.0)[len(calls) - 1]
        return types.SimpleNamespace(stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    tools.run(settings)
    seconds = settings.seconds
    assert [each["timeout"] for each in calls] == [seconds, seconds - 5, 0]
    assert {each["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] for each in calls} == {"1"}


def test_the_table_is_of_cases(settings):
    """Beside what they have measured lies a table of tiles."""
    about = surroundings("cpu")
    for name in ("muon", "muon-2"):
        gpu.write(settings.out / f"{name}.json", about, [], [f"{name}: no case"])
    (settings.out / "tiles.json").write_text("[]")
    cases.write_table(settings.out)
    text = (settings.out / "table.md").read_text()
    assert text.count(": no case") == 2


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
    # nothing was timed with fewer
    assert sweep.fitted(measured[:6], 132) == [large._replace(programs=2.0), small]
    # one that failed in all cases but one has a time less to add up
    once = {**measured[1], "tile": small._replace(warps=8)}
    assert sweep.fitted([once, *measured[:6]], 132)[-1] == small


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("needs 24 GiB", 0),
        ("condition: torch.cuda.device_count() < 2", 0),
        ("needs a GPU", 1),
        ("could not import 'emanest.backends.cpp'", 1),
    ],
)
def test_a_test_that_could_have_run_must_not_be_skipped(reason, status, monkeypatch):
    came = (
        collections.Counter(passed=3, failed=0, skipped=1),
        collections.Counter(),
        {reason: 1},
        [],
    )
    monkeypatch.setattr(tests, "run_tests", lambda *_: came)
    assert tests.main(["all"]) == status


@pytest.mark.parametrize("which", cases.SETS)
def test_stages_name_cases_that_there_are(which):
    names = {case.name for case in CASES if case.device == "cuda"}
    assert {*cases.SETS[which], *cases.BRIEF[which]} <= names
