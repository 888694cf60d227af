# SPDX-License-Identifier: MIT
"""What is timed of a call: a device that is idle, a queue that hides the host, or a graph.

``idle``: the device has nothing to do when the call begins. The host's part is in the time, where
it is slower than the device, as in a loop that waits for the optimizer. On a CPU there is no other.

``queued``: the device is kept busy until the host is done, and the time is the device's alone, gaps
between kernels included, as behind a backward pass.

``replayed``: the call is a replay of a CUDA graph of a step, behind other work as well.

All return seconds between begin and end on the device, and seconds until the call returns.
"""

import time

import torch

# cycles of a second, at least: a sleep that is too long costs a moment, a short one is noticed
CLOCK = 2e9
# for how long the device is kept busy at most, which is longer than any host's part
LONGEST = 0.5


class NotQueued(RuntimeError):
    """The call does not return while the device is busy."""


def on_cpu(call, ahead):
    """Seconds that a call takes, and the seconds until it returns: the same on a CPU."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, seconds


def idle(call, ahead):
    """Seconds between two events on the idle device, and the seconds until the call returns."""
    seconds, host, _ = _between_events(call, 0.0)
    return seconds, host


def queued(call, ahead):
    """The same behind work that keeps the device busy until the call has returned.

    Args:
        call: what is timed; again, behind more work, where the device was idle too soon.
        ahead: seconds of work that should be enough.

    Raises:
        NotQueued: no amount of work is enough: the host waits for the device.
    """
    ahead += 1e-4
    while True:
        seconds, host, behind = _between_events(call, ahead)
        if behind:
            return seconds, host
        if ahead > LONGEST:
            raise NotQueued(
                f"the device was idle before the call returned, {ahead:.1f} s of work ahead: the "
                "host waits for it, or launches more kernels than its queue holds"
            )
        ahead *= 4


def _between_events(call, ahead):
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(int(CLOCK * ahead))
    before.record()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    behind = not before.query()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3, host, behind


# device -> timing -> (call, seconds of work ahead) -> (seconds, seconds of the host)
CLOCKS = {
    "cpu": {"idle": on_cpu},
    "cuda": {"queued": queued, "idle": idle, "replayed": queued},
}
