# SPDX-License-Identifier: MIT
"""Real processes that run a function together, over gloo."""

import atexit
import functools
import multiprocessing
import os
import tempfile
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# what the modules of the functions import: once, not in every process
PRELOADED = ["emanest", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"]
# whoever waits for a process that has failed gives up
PATIENCE = timedelta(seconds=30)


def context():
    """A way to start processes, each a fork of one that has imported ``PRELOADED``."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


class Ranks:
    """Processes that stay alive between calls: each takes seconds to import torch.

    A call makes a process group of its own.
    """

    def __init__(self):
        self._context = context()
        self._workers = []
        atexit.register(self.close)

    def __call__(self, world, function, *args):
        """What ``function(*args)`` returns in each of ``world`` processes."""
        while len(self._workers) < world:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, ours))
        with tempfile.TemporaryDirectory() as folder:
            used = self._workers[:world]
            for rank, (_, pipe) in enumerate(used):
                pipe.send((f"file://{folder}/store", rank, world, function, args))
            answers = [self._answer(pipe) for _, pipe in used]
        errors = [text for ok, text in answers if not ok]
        if errors:
            # of several, the others may only have waited for the first
            self.close()
            raise AssertionError("\n".join(errors))
        return [value for _, value in answers]

    def _answer(self, pipe):
        # also of one that gloo does not rouse
        if not pipe.poll(2 * PATIENCE.total_seconds()):
            self.close()
            raise AssertionError("a process does not answer")
        try:
            return pipe.recv()
        except EOFError:
            # the others wait for it
            self.close()
            raise AssertionError("a process has crashed") from None

    def close(self):
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers = []


@functools.cache
def ranks():
    return Ranks()


def _serve(pipe):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    while True:
        store, rank, world, function, args = pipe.recv()
        try:
            dist.init_process_group(
                "gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE
            )
            torch.manual_seed(0)
            answer = True, function(*args)
        except BaseException:
            answer = False, f"rank {rank} of {world}:\n{traceback.format_exc()}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(answer)
