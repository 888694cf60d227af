# SPDX-License-Identifier: MIT
"""Processes that need not import torch are as fresh as others, and end as they do."""

import fresh

FOUND = "import sys; print(*(name for name in sys.modules if name.partition('.')[0] == 'emanest'))"


def test_nothing_of_emanest_is_there_whatever_another_has_imported():
    assert "emanest.rules" in fresh.python(f"import emanest.rules; {FOUND}").stdout.split()
    assert fresh.python(FOUND).stdout.split() == []


def test_torch_is_there():
    assert fresh.python("import sys; sys.exit('torch' not in sys.modules)").returncode == 0


def test_folder_and_variables_are_those_of_the_call(tmp_path, monkeypatch):
    (tmp_path / "here.py").write_text("")
    monkeypatch.setenv("FRESH", "new")
    code = "import here, os; print(os.getcwd(), os.environ.get('FRESH'), os.environ.get('HOME'))"
    assert fresh.python(code, tmp_path, {"FRESH": "given"}).stdout.split()[1:] == ["given", "None"]
    assert fresh.python(code, tmp_path).stdout.split()[:2] == [str(tmp_path), "new"]


def test_it_ends_as_python_does():
    done = fresh.python("import sys; print(1); print(2, file=sys.stderr); sys.exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "2\n", 3)
    failed = fresh.python("import os\nos.system('echo 1')\n1 / 0")
    assert (failed.stdout, failed.returncode) == ("1\n", 1)
    assert failed.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert fresh.python("import os; os.kill(os.getpid(), 9)").returncode == -9
