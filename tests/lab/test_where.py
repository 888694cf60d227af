# SPDX-License-Identifier: MIT
"""Where a run was done, as its line has it."""

import subprocess

import torch

from examples.lab.store import commit, processor


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit.__wrapped__() == "unknown"


def test_the_commit_of_a_repository_around_it_is_not_its_own(tmp_path, monkeypatch):
    inside = tmp_path / "unpacked"
    inside.mkdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "c"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr("examples.lab.store.ROOT", inside)
    assert commit.__wrapped__() == "unknown"
    monkeypatch.setattr("examples.lab.store.ROOT", tmp_path)
    assert len(commit.__wrapped__()) == 10


def test_a_run_on_the_cpu_is_not_called_one_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    assert processor(torch.device("cpu")) != "a GPU"
    assert processor(torch.device("cuda", 0)) == "a GPU"
