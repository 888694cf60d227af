# SPDX-License-Identifier: MIT
"""Stand-ins for ``torch.cuda``, and a GPU's tensors on the CPU."""

import contextlib
import time
import types

import torch
import torch._dynamo  # knows functions of torch.cuda by identity, the first time
from torch.overrides import TorchFunctionMode

from . import driver, graph

CYCLES = 2e9  # of a GPU, in a second


class Device:
    """What the GPU would be doing: what the host did, but later, once it was told to sleep."""

    delay = 0.0

    @classmethod
    def sleep(cls, cycles):
        cls.delay += cycles / CYCLES

    @classmethod
    def synchronize(cls, *ignored):
        time.sleep(cls.delay)
        cls.delay = 0.0


class Event:
    """A moment on the clock of the GPU."""

    def __init__(self, enable_timing=False, **ignored):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter() + Device.delay

    def query(self):
        return self.at <= time.perf_counter()

    def synchronize(self):
        time.sleep(max(0.0, self.at - time.perf_counter()))

    def wait(self, stream=None):
        pass

    def elapsed_time(self, other):
        """Milliseconds."""
        return 1e3 * (other.at - self.at)


class Stream:
    """Work on it is done by the time that it is given."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *ignored, **more):
        pass

    def is_capturing(self):
        return graph.Graph.recording

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record()
        return event

    def synchronize(self):
        Device.synchronize()


STREAM = Stream()
NAME = "no GPU"
PROPERTIES = types.SimpleNamespace(
    name=NAME,
    major=9,
    minor=0,
    multi_processor_count=driver.PROPERTIES["multiprocessor_count"],
    total_memory=80 * 2**30,
)


def nothing(*args, **kwargs):
    return None


def number(value):
    return lambda *args, **kwargs: value


# what is used of torch.cuda here and in the tests
STAND_INS = {
    "is_available": number(True),
    "is_initialized": number(True),
    "device_count": number(1),
    "current_device": number(0),
    "set_device": nothing,
    "device": lambda device: contextlib.nullcontext(),
    "get_device_name": number(NAME),
    "get_device_capability": number((9, 0)),
    "get_device_properties": number(PROPERTIES),
    "synchronize": Device.synchronize,
    "Event": Event,
    "Stream": Stream,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": number(STREAM),
    "default_stream": number(STREAM),
    "CUDAGraph": graph.CUDAGraph,
    "graph": graph.graph,
    "graph_pool_handle": nothing,
    "is_current_stream_capturing": lambda: graph.Graph.recording,
    "_sleep": Device.sleep,
    "memory_allocated": number(0),
    "max_memory_allocated": number(0),
    "reset_peak_memory_stats": nothing,
    "empty_cache": nothing,
    "mem_get_info": number((2**30, PROPERTIES.total_memory)),
    "set_sync_debug_mode": nothing,
    "manual_seed_all": nothing,
}


def _here(value):
    """A device argument on the CPU instead of a GPU; anything else as it is."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def _copied(tensor, *ignored, **more):
    return tensor.clone()


# a tensor that crosses to or from a GPU is another one afterwards
CROSSING = {torch.Tensor.cuda: _copied, torch.Tensor.cpu: _copied, torch.Tensor.pin_memory: _copied}


class OnCpu(TorchFunctionMode):
    """Gives tensors asked for on a GPU memory of the host."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in CROSSING:
            return CROSSING[func](*args, **kwargs)
        here = tuple(map(_here, args))
        if func is torch.Tensor.to and any(a is not b for a, b in zip(args, here, strict=True)):
            kwargs = {**kwargs, "copy": True}
        return func(*here, **{name: _here(value) for name, value in kwargs.items()})


class Generator(torch.Generator):
    """Of the CPU, whatever device is asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def install():
    for name, value in STAND_INS.items():
        setattr(torch.cuda, name, value)
    # torch's own optimizers ask it whether a graph is being captured
    torch.accelerator.current_stream = torch.cuda.current_stream
    torch.Generator = Generator
    # it would look for graphs that a CPU build does not have
    torch.compiler.reset = nothing
    # never left
    OnCpu().__enter__()
