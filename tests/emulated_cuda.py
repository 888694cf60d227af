"""The CUDA back end on CPU tensors: the kernels' own code, run by ``emulated_cuda.cpp``."""

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.cpp_extension import load

ROOT = Path(__file__).parents[1]
SOURCES = ["tests/emulated_bindings.cpp", "tests/emulated_cuda.cpp"]
# an access that its address does not suit is an illegal instruction, as it is an error on a GPU
FLAGS = ["-O0", "-ffp-contract=off", "-fvisibility=hidden", "-fsanitize=alignment"]
FLAGS += ["-fsanitize-undefined-trap-on-error"]


@functools.cache
def extension():
    """The bindings with emulated kernels, compiled if their sources changed."""
    folder = ROOT / "build" / "emulated_cuda"
    folder.mkdir(parents=True, exist_ok=True)
    # ninja is beside the interpreter, which need not be on the path
    path = os.environ["PATH"]
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), path))
    try:
        sources = [str(ROOT / source) for source in SOURCES]
        return load("emulated", sources, extra_cflags=FLAGS, build_directory=str(folder))
    finally:
        os.environ["PATH"] = path


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
