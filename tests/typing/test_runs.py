# SPDX-License-Identifier: MIT
"""Two runs at once in one tree do not disturb each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import checkers

# of two runs: a module of the same name, and the line of its error
RUNS = {"first": ("number: int = ''\n", 1), "second": ("import os\n\nnumber: int = ''\n", 3)}


def test_each_run_reads_its_own_files(tmp_path):
    folders = {run: tmp_path / run for run in RUNS}
    for run, folder in folders.items():
        folder.mkdir()
        checkers.write(folder, {"module": RUNS[run][0]})
    with ThreadPoolExecutor() as pool:
        running = {
            (run, name): pool.submit(check, folder)
            for run, folder in folders.items()
            for name, check in checkers.CHECKERS.items()
        }
        lines = {key: [each.line for each in run.result()] for key, run in running.items()}
    assert lines == {(run, name): [RUNS[run][1]] for run in RUNS for name in checkers.CHECKERS}


def test_one_mypy_at_a_time_has_the_cache(tmp_path, monkeypatch):
    began = threading.Event()

    def output(folder, *command):
        began.set()
        return ""

    monkeypatch.setattr(checkers, "_output", output)
    thread = threading.Thread(target=checkers.mypy, args=(tmp_path,))
    with checkers.cache_of_ones_own():
        thread.start()
        assert not began.wait(0.2)
    assert began.wait(20)
    thread.join()
