# SPDX-License-Identifier: MIT
import gc
import os
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.utils.deterministic

# asserts of modules that tests share say what was compared; before any test imports one
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("[!t]*.py")))

# read when CUDA starts: deterministic matrix products need it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# a hook of git's that runs the tests says where its repository is: none of the tests' own
for variable in [name for name in os.environ if name.startswith("GIT_")]:
    del os.environ[variable]

# tensors here are small, and `make test` runs two processes
torch.set_num_threads(1)

# memory that nobody wrote holds NaN, and cannot pass
torch.utils.deterministic.fill_uninitialized_memory = True

# no deadline: a first example may compile. derandomize: every run tests the same examples
hypothesis.settings.register_profile("emanest", deadline=None, derandomize=True)
hypothesis.settings.load_profile("emanest")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without the garbage collector, which looks through all that stays over and over."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items):
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        lookaheads = [given[name] for name in ("lookahead", "method") if name in given]
        if lookaheads and hasattr(given.get("entry"), "slow") and given["entry"].slow(*lookaheads):
            item.add_marker(pytest.mark.slow)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def pytest_collection_finish():
    """Let the garbage collector pass over thousands of tests, modules and imported packages."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def reproducible():
    """Seed torch, and hold it to deterministic algorithms."""
    # torch.manual_seed, and setting this once more, take longer than many a test
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    if not torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True)
