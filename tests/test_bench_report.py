# SPDX-License-Identifier: MIT
"""What benchmarks leave behind: reports, files of runs, predictions."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fresh
from bench import check, core, gpu, peers, predict, report, train_report
from bench.cases import CPU, CUDA

ROOT = Path(__file__).parents[1]
FIRST = CPU[0]


def entry(case, name, seconds, timing="idle", **info):
    common = {
        **{"case": case, "variant": name, "timing": timing, "model": "M", "dtype": "float32"},
        **{"date": "2026-01-02", "commit": "abc", "machine": "CPU", "threads": 2, "torch": "2"},
        **{"python": "3", "units": "AVX2", "load": 0.1, "backend": "b", "host": 20e-6},
    }
    stats = {"median": seconds, "q1": 0.9 * seconds, "q3": 1.1 * seconds}
    return {"extra_info": {**common, **info}, "stats": stats}


def test_report_of_a_small_run():
    claims = [
        ["speedup", "slow", 3.5, 4.5, "idle"],
        ["speedup", "same", 0.95, 1.0, "idle"],
        ["cost", "less", 1.4, 1.29, "idle"],
        ["speedup", "unasked", None, None, "idle"],
        ["state", "less", 4, 4, "idle"],
        ["transient", None, 0, 0, "idle"],
        ["share", None, 0.88, None, "idle"],
        ["accuracy", "slow", 100, 1000, "idle"],
        ["lookahead", "same", 2, None, "idle"],
        ["host", None, 30, None, "idle"],
        ["host of", "slow", 30, None, "idle"],
        ["speedup", "absent", 2, 2, "idle"],
    ]
    more = {
        "predicted": 0.08,
        "claims": claims,
        "skipped": {"absent": "no package"},
        "error": 5e-7,
        "share": 0.9,
    }
    more["host"] = 25e-6
    data = {
        "benchmarks": [
            entry(*("c", "us", 0.1), state_bytes=12, transient_bytes=0.001, **more),
            *(entry("c", n, t) for n, t in [("same", 0.099), ("unasked", 0.2)]),
            entry("c", "slow", 0.4, error=1e-4, gigaflops_per_second=12.345, host=31e-6),
            entry("c", "less", 0.07, state_bytes=8),
        ],
        "failed": ["other: broke"],
    }
    text = report.report(data)
    lines = text.splitlines()[4:15]
    cells = [[line.split("|")[i].strip() for i in (2, 4, 5, 6, 7)] for line in lines]
    assert {line.split("|")[3].strip() for line in lines} == {"idle"}
    assert {line.split("|")[10].strip() for line in lines} == {"80"}
    assert cells == [
        ["slow / ours", "4.00", "3.5", "4.5", "ok"],
        ["same / ours", "0.99", "0.95", "1", "ok"],
        ["ours / less", "1.43", "1.4", "1.29", "miss"],
        ["unasked / ours", "2.00", "", "", ""],
        ["bytes per parameter beyond less", "4.00", "4", "4", "ok, stretch"],
        ["transient bytes per parameter", "0.00", "0", "0", "ok, stretch"],
        ["share of the ceiling", "0.90", "0.88", "", "ok"],
        ["error of slow / error of ours", "200.00", "100", "1000", "ok"],
        ["% of ours beyond same", "1.00", "2", "", "ok"],
        ["host µs per step", "25.00", "30", "", "ok"],
        ["host µs per step, slow", "31.00", "30", "", "miss"],
    ]
    assert "| 12.35 | 5.0e-07 | 1.0e-04 |" in text
    assert text.startswith(
        "2026-01-02, commit abc, CPU, AVX2, 2 threads, torch 2, Python 3, back end b"
    )
    assert "100 (90 to 110)" in text
    assert text.endswith("Not run:\n\n- c: absent: no package\n\nFailed:\n\n- other: broke")
    # one timing is its own table
    assert "queued, ms" not in text
    assert "busy" not in text
    data["benchmarks"][0]["extra_info"]["load"] = 5.0
    assert "busy (load 5.0" in report.report(data)


def test_report_of_three_timings():
    claims = [
        ["speedup", "p", 2, None, "queued"],
        ["speedup", "p", 2, 3, "replayed"],
        ["host", None, 30, 15, "replayed"],
        ["speedup", "p", None, None, "idle"],
    ]
    data = {
        "benchmarks": [
            entry("c", "us", 0.1, claims=claims, predicted=0.08),
            entry("c", "us", 0.05, "queued", predicted=0.04),
            entry("c", "us", 0.051, "replayed", host=12e-6),
            entry("c", "p", 0.13, error=1e-3),
            entry("c", "p", 0.1, "queued", error=1e-3),
        ]
    }
    lines = report.report(data).splitlines()
    cells = [[line.split("|")[i].strip() for i in (2, 3, 4, 7)] for line in lines[4:7]]
    # a peer that cannot be replayed is in none of its ratios
    assert cells == [
        ["p / ours", "queued", "2.00", "ok"],
        ["host µs per step", "replayed", "12.00", "ok, stretch"],
        ["p / ours", "idle", "1.30", ""],
    ]
    start = lines.index("| " + " | ".join(report.TIMES) + " |")
    assert lines[start + 2 :] == [
        "| c | us | 50 | 100 | 51 | 40 / 80 | 20 / 20 / 12 |  |",
        "| c | p | 100 | 130 |  |  | 20 / 20 | 1.0e-03 |",
    ]


def test_report_of_several_files(tmp_path):
    """What was measured in one place is one table; a case that was measured again, another."""
    claims = [["speedup", "p", None, None, "idle"]]
    files = []
    for case, ours, more in (
        *(("a", 0.1, {}), ("b", 0.2, {})),
        *(("a", 0.3, {}), ("c", 0.4, {"machine": "GPU"})),
    ):
        run = [entry(case, "us", ours, claims=claims, **more), entry(case, "p", 1.0, **more)]
        files.append(tmp_path / f"{len(files)}.json")
        files[-1].write_text(json.dumps({"benchmarks": run, "failed": [f"{ours} broke"]}))
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({"benchmarks": []}))
    printed = subprocess_run([f"{ROOT}/bench/report.py", *map(str, [*files, empty])])
    rows = [line.split("|")[1::3][:2] for line in printed.splitlines() if "p / ours" in line]
    assert [case.strip()[0] for case, _ in rows] == ["a", "b", "a", "c"]
    assert printed.count("commit abc, CPU") == 2
    assert printed.count("commit abc, GPU") == 1
    assert printed.rstrip().endswith("- 0.1 broke\n- 0.2 broke\n- 0.3 broke\n- 0.4 broke")


CASE = CPU[0]._replace(name="one", peers=())


def run(tmp_path, monkeypatch, cases, *arguments):
    """Run some cases on the CPU; the status."""
    monkeypatch.setattr(gpu, "CASES", cases)
    return gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path), *arguments])


def test_a_run_without_pytest_benchmark(tmp_path, monkeypatch, capsys):
    broken = FIRST._replace(name="ema adamw broken", ours="no such variant")
    arguments = ["ema", "--name", "elementwise"]
    assert run(tmp_path, monkeypatch, (broken, CASE, FIRST), *arguments) == 1
    (path,) = tmp_path.iterdir()
    assert path.name == "elementwise.json"
    data = json.loads(path.read_text())
    assert data["failed"] == ["ema adamw broken: KeyError: 'no such variant'"]
    assert {each["extra_info"]["case"] for each in data["benchmarks"]} == {"ema adamw"}
    text = report.report(data)
    assert "two-phase around torch fused AdamW / ours" in text
    # last of all
    assert capsys.readouterr().out.endswith(text + "\n")


def test_runs_into_one_folder_keep_their_files(tmp_path, monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(gpu, "quick", lambda case: pytest.fail("not started"))
        assert run(tmp_path, monkeypatch, (CASE,), "--name", "a", "--minutes", "0") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.json", "a.json"]
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text())["failed"] == ["one: no time left after 0.0 minutes"]


def test_a_case_that_takes_too_long_is_cut_short_and_the_next_one_runs(tmp_path, monkeypatch):
    def slow(case):
        if case.name == "one":
            # as a peer's failure would be caught
            check.tried(time.sleep, 60, own=False)
        raise RuntimeError("started")

    monkeypatch.setattr(gpu, "quick", slow)
    cases = CASE, CASE._replace(name="two")
    assert run(tmp_path, monkeypatch, cases, "--case-seconds", "0.05") == 1
    (path,) = tmp_path.iterdir()
    expected = ["one: OutOfTime: more than 0.05 s", "two: RuntimeError: started"]
    assert json.loads(path.read_text())["failed"] == expected


def test_all_cases_are_served_by_the_back_end_that_was_asked_for(tmp_path, monkeypatch):
    def served(case):
        asked.append(os.environ.get("EMANEST_BACKEND"))
        info = {"backend": "emanest.backends.cpp", "case": case.name}
        return {case.ours: SimpleNamespace(info=info)}

    asked = []
    monkeypatch.setattr(gpu, "quick", served)
    before = os.environ.get("EMANEST_BACKEND")
    assert run(tmp_path, monkeypatch, (CASE,), "--backend", "eager") == 1
    (path,) = tmp_path.iterdir()
    error = "one: OtherBackend: emanest.backends.eager was to serve it, emanest.backends.cpp did"
    assert json.loads(path.read_text())["failed"] == [error]
    assert asked == ["eager"]
    assert os.environ.get("EMANEST_BACKEND") == before
    assert gpu.BACKEND == {"cuda": "triton"}


def test_words_pick_cases_by_name_or_by_a_part_of_it(capsys):
    def names(*words):
        return [case.name for case in gpu.picked(CUDA, words)]

    assert names() == [case.name for case in CUDA]
    assert names("newton-schulz 2048x8192") == ["newton-schulz 2048x8192"]
    assert names("muon", "adamw large") == ["adamw large", "muon"]
    assert names("wrapper") == ["wrapper alone, small", "wrapper alone, large"]
    with pytest.raises(ValueError, match="no case has a name with 'moon'"):
        names("moon")
    assert gpu.main(["--list", "wrapper alone, small"]) == 0
    assert capsys.readouterr().out == "wrapper alone, small: GPT-2 124M\n"


def test_every_gpu_case_has_a_prediction():
    for case in CUDA:
        for machine in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"):
            found = predict.seconds(case, case.ours, machine)
            assert tuple(found) == case.timings
            assert min(found.values()) > 0
    assert predict.seconds(CUDA[0], CUDA[0].ours, "NVIDIA A100") == {}


@pytest.mark.parametrize("machine", predict.MACHINES, ids=lambda machine: machine.name)
def test_no_prediction_is_below_its_floor(machine):
    for case in CUDA:
        found = predict.times(case, case.ours, machine)
        assert found.floor < found.queued <= found.idle


def test_predictions_follow_from_the_formulas():
    """Of 4.48 GB at 92 % of 4.3 TB/s, and of the chunks at the ends of 148 tensors."""
    case = next(case for case in CUDA if case.name == "ema adamw small")
    found = predict.seconds(case, case.ours, "NVIDIA H200")
    moved = 36 * 124_439_808 + 16384 * 148
    assert found["queued"] == found["replayed"] == pytest.approx(moved / 4.3e12 / 0.92 + 1.5e-6)
    assert found["idle"] == pytest.approx(found["queued"] + 110e-6 + 148 * 1.95e-6)


def test_the_notes_have_the_predictions_of_today():
    notes = (ROOT / "bench" / "NOTES.md").read_text(encoding="utf-8").splitlines()
    for table in (predict.ceilings(), predict.table()):
        lines = list(table)
        assert lines == notes[notes.index(lines[0]) :][: len(lines)]


def subprocess_run(arguments):
    """Run Python; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_under_pytest_benchmark(tmp_path, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "run.json"
    monkeypatch.setenv("EMANEST_BENCH_QUICK", "1")
    options = ["--benchmark-only", f"--benchmark-json={path}", "-qs", "-k", "sgd"]
    # within this process: a new one would import torch and its compiler anew
    without = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist"]
    assert pytest.main([f"{ROOT}/bench", *options, *without]) == 0
    data = json.loads(path.read_text())
    kept = {b["name"]: b["extra_info"]["halves"] for b in data["benchmarks"]}
    assert set(kept) == {peers.OURS_SGD, peers.TWO_PHASE_SGD, core.CEILING}
    for each in data["benchmarks"]:
        assert each["stats"]["data"] == pytest.approx(kept[each["name"]])
    assert "two-phase around torch fused SGD / ours" in report.report(*report.read([path]))


def test_the_source_tree_needs_no_installation(tmp_path):
    for folder in ("emanest", "kernels", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so"))
    code = "import bench.source_tree, emanest.kernels; print(emanest.kernels.__file__)"
    done = fresh.python(code, tmp_path)
    assert done.stdout.strip() == str(tmp_path / "kernels" / "__init__.py")


def test_the_page_of_speed_is_what_was_measured():
    results = ROOT / "bench" / "results"
    text = (ROOT / "docs" / "speed.md").read_text()
    command = [f"{ROOT}/bench/report.py", "--page"]
    pages = [subprocess_run([*command, str(path)]) for path in results.glob("*.json")]
    pages += ["\n".join(train_report.table(train_report.read(p))) for p in results.glob("*.jsonl")]
    assert len(pages) >= 3
    assert all(page in text for page in pages)
    # and README has no number that the pages have not
    text += (ROOT / "docs" / "speed_cpu.md").read_text()
    table = (ROOT / "README.md").read_text().partition("## Speed")[2].partition("##")[0]
    numbers = re.findall(r"\d+\.\d\d", table)
    assert len(numbers) >= 6
    assert all(re.search(rf"\b{number}\b", text) for number in numbers)


def test_a_peer_that_is_faster_is_named():
    """But for one that computes something else, and by the same timing."""
    claims = [["speedup", "quick", 1, 2, "idle"], ["cost", "less", 2, 1, "idle"]]
    entries = [
        entry("c", "ours", 2e-3, family="f", claims=claims),
        entry("c", "ours", 1e-3, "queued", family="f"),
        entry("c", "quick", 1e-3, family="f"),
        entry("c", "quick", 1.5e-3, "queued", family="f"),
        entry("c", "less", 1e-3, family="g"),
    ]
    (cases,) = [cases for _, cases in report.grouped([{"benchmarks": entries}])]
    assert list(report.faster(cases)) == [("c", "idle", "quick", "0.50", "2", "1")]
    assert [row[3:7] for row in report.asked(cases)] == [
        ["0.50", "1", "2", "miss"],
        ["2.00", "2", "1", "ok"],
    ]
