# SPDX-License-Identifier: MIT
"""What depends on the device: memory, graphs, names, rounds. The rest of the code is shared."""

import contextlib
import datetime
import gc
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Memory:
    """Filled when the watched block ends, in bytes."""

    held = 0  # allocated in the block and still there
    peak = 0  # the most that was there at any moment of it


@contextlib.contextmanager
def memory_on_cpu():
    """Guard torch's CPU allocator, which extensions use too."""
    memory, sizes = Memory(), {}
    # one cycle, of which torch 2.11 would warn that it forgets those before
    options = {"profile_memory": True, "acc_events": True}
    with profile(activities=[ProfilerActivity.CPU], **options) as trace:
        yield memory
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = (event["args"] for event in events if event["name"] == "[memory]")
    for event in sorted(events, key=lambda event: event["Ev Idx"]):
        # what is freed here but is older than the block does not count
        older = event["Bytes"] < 0 and event["Addr"] not in sizes
        if not older:
            sizes[event["Addr"]] = sizes.get(event["Addr"], 0) + event["Bytes"]
            memory.held += event["Bytes"]
            memory.peak = max(memory.peak, memory.held)


@contextlib.contextmanager
def memory_on_cuda():
    """Guard torch's caching allocator; its blocks are multiples of 512 bytes."""
    memory = Memory()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    yield memory
    torch.cuda.synchronize()
    memory.held = torch.cuda.memory_allocated() - start
    memory.peak = torch.cuda.max_memory_allocated() - start


def capture(step, pool=None):
    """Record a step in a CUDA graph, without running it; return what replays it.

    Args:
        step: what is recorded.
        pool: memory that graphs share which are never replayed at once; None: its own.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay


def graph_pool(device):
    """Memory that graphs share; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device == "cuda" else None


@contextlib.contextmanager
def side_stream():
    """What is captured later has to be warmed up off the default stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def cpu_name():
    """The processor and how many of its cores this process may use."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor()}, {cores} cores"


def cpu_units():
    """What bfloat16 is multiplied with, upon which the speed of torch's Muon depends."""
    found = {
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *(k for k, v in found.items() if v)])


def gpu_units():
    """The compute capability."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


# rounds of a case with a variant that takes minutes: bfloat16 does on a CPU without units for it
FEWEST = 3


class Device(NamedTuple):
    """How to measure on a kind of device."""

    memory: Callable
    name: Callable[[], str]
    units: Callable[[], str]  # arithmetic units that speed depends on
    rounds: tuple[int, int]  # at least, at most
    seconds: float  # of timed rounds per case, between those bounds
    patience: float  # seconds after which there are fewer rounds than the least, but FEWEST

    def rounds_of(self, cycle):
        """How many rounds a case gets, given the seconds of one."""
        least, most = self.rounds
        usual = min(most, max(least, int(self.seconds / cycle)))
        return max(FEWEST, min(usual, int(self.patience / cycle)))


DEVICES = {
    "cpu": Device(memory_on_cpu, cpu_name, cpu_units, (9, 101), 20.0, 300.0),
    # what a GPU machine costs: no case gets more than 3 seconds, unless so few rounds take longer
    "cuda": Device(
        memory_on_cuda, lambda: torch.cuda.get_device_name(), gpu_units, (FEWEST, 51), 3.0, 10.0
    ),
}

# larger than the last-level cache of a GPU; a CPU may have more, of which a machine gets a part
CACHE_BYTES = 256 * 2**20


class Cache:
    """Memory that is read before each timed call, so that nobody finds its arrays in the cache.

    The backward pass of a model does the same. Read, not written: what a write leaves behind would
    have to go to memory during the timed call.
    """

    def __init__(self, device, size):
        self.other = torch.ones(size // 4, device=device)

    def evict(self):
        """Fill the cache with other values."""
        return self.other.sum()


def commit():
    """The revision of the source tree; a trailing + says that files differ from it.

    ``EMANEST_COMMIT`` says it where the tree was copied without its history.
    """
    given = os.environ.get("EMANEST_COMMIT")
    if given:
        return given
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    try:
        run = {"capture_output": True, "text": True, "check": True}
        revision = subprocess.run([*git, "rev-parse", "--short", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], **run).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + "+" * bool(changed)


def surroundings(device):
    """What a reader needs to know of the machine and the software."""
    return {
        "device": device,
        "machine": DEVICES[device].name(),
        "units": DEVICES[device].units(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        # others at work on these cores make threads wait for each other: ratios mean nothing then
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
