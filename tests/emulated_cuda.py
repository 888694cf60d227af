# SPDX-License-Identifier: MIT
"""The CUDA back end on CPU tensors: the kernels' own code, run by ``emulated_cuda.cpp``."""

import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import torch

from emanest.extension import compiling, running, sources

ROOT = Path(__file__).parents[1]
SOURCES = ["emulated_bindings.cpp", "emulated_cuda.cpp"]
# an access that its address does not suit is an illegal instruction, as it is an error on a GPU
FLAGS = ["-O0", "-ffp-contract=off", "-fvisibility=hidden", "-fsanitize=alignment"]
FLAGS += ["-fsanitize-undefined-trap-on-error"]


@functools.cache
def extension():
    """The bindings with emulated kernels, compiled if their sources changed."""
    folder, tests = ROOT / "build" / "emulated_cuda", ROOT / "tests"
    target = folder / f"emulated{sources.SUFFIX}"
    flags = [*FLAGS, *compiling.of_torch("emulated"), *compiling.includes()]
    read = [*sources.files(ROOT / "csrc"), *sources.files(tests)]
    jobs = {
        name: compiling.compilation(tests / name, (folder / name).with_suffix(".o"), flags, read)
        for name in SOURCES
    }
    running.run_all(
        {name: functools.partial(running.make, job) for name, job in jobs.items()}, print
    )
    compiling.link(target, [str(job.target) for job in jobs.values()])
    spec = importlib.util.spec_from_file_location("emulated", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Torch:
    """The module torch, with one stream."""

    def __init__(self, stream):
        current = SimpleNamespace(cuda_stream=stream.handle)
        self.cuda = SimpleNamespace(current_stream=lambda device: current)

    def __getattr__(self, name):
        return getattr(torch, name)


def backend(stream):
    """A copy of ``emanest.backends.cpp`` that takes CPU tensors for those of a GPU."""
    spec = importlib.util.find_spec("emanest.backends.cpp")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._C, module.torch = extension(), _Torch(stream)
    module._TARGETS = {"cpu": module._on_cuda}
    return module
