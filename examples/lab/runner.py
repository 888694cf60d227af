# SPDX-License-Identifier: MIT
"""The runner: does the runs of an experiment side by side, and goes on where it was interrupted."""

import contextlib
import math
import multiprocessing
import signal
import sys
import time

import torch
import torch.distributed as dist

from . import saving
from .parallel import World
from .store import commit
from .training import Run

SAVE_EVERY = 60.0  # seconds of a run between copies of where it stands
ALONE = World(0, 1, torch.device("cpu"))
WAIT = 0.5  # seconds until a worker looks again for a run that another has let go


class WorkerError(RuntimeError):
    """A worker that failed; what it raised has been printed."""


class Stop:
    """Whether to stop: after a time, or when a signal has come."""

    def __init__(self, seconds=math.inf):
        self.end = time.monotonic() + seconds
        self.asked = False

    def listen(self):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._ask)
        return self

    def _ask(self, *_):
        self.asked = True

    def __bool__(self):
        return self.asked or time.monotonic() > self.end


def do(settings, path, stop=False, world=None, **options):
    """Do a run from where ``path`` says that it stands.

    Args:
        path: for where it stands, the same in all processes.
        stop: true once it is to stop; where there are several processes it is not asked.
        world, options: of ``Run``.

    Returns:
        The run; it is not ``done`` if it had to stop, and then ``path`` says where it stands.
    """
    run = Run(settings, world, **options)
    saving.load(run, path)
    saved = time.monotonic()
    while not run.done:
        run.advance()
        if run.world.size > 1:
            # all of them at the same step, without asking each other at every one
            due, stopped = run.step % run.every == 0, False
        else:
            stopped = bool(stop)
            due = stopped or time.monotonic() - saved > SAVE_EVERY
        if due and not run.done:
            saving.save(run, path)
            saved = time.monotonic()
        if stopped:
            break
    return run


def work(experiment, store, stop=False, world=ALONE, **options):
    """Do one run after another until none is left that nobody has.

    Any number of processes may do this at the same time, on as many machines as share both folders
    of the store; those of one ``world`` do each run together.
    """
    commit()
    while not same(bool(stop), world):
        due = [s for s in experiment.runs(store) if store.find(s) is None]
        due = same(due, world)
        if not due:
            return
        done = [_done_here(experiment, s, store, stop, world, options) for s in due]
        if not any(done):
            # others are at all of them; what is due next may depend on what they find
            time.sleep(WAIT)


def _done_here(experiment, settings, store, stop, world, options):
    with store.claimed(settings) if world.first else contextlib.nullcontext() as mine:
        if not same(mine and not stop, world):
            return False
        path = store.unfinished(settings)
        run = do(settings, path, stop, world, **options)
        if run.done and world.first:
            how = {"processes": world.size, **options} if world.size > 1 else {}
            digest, device = run.data.digest, run.world.device
            store.add(experiment.name, settings, run.result(), digest, device, **how)
            saving.remove(path)
        return run.done


def same(value, world):
    """What the first process of a world says, in all of them."""
    values = [value]
    if world.size > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def _worker(experiment, store, seconds):
    torch.set_num_threads(1)
    work(experiment, store, stop=Stop(seconds).listen())


def side_by_side(experiment, store, workers, seconds=math.inf, out=sys.stderr):
    """Do the runs of an experiment in so many processes, one thread each, and say how far they are.

    Returns:
        Whether all runs are done.

    Raises:
        KeyboardInterrupt: it was interrupted; no worker is left.
        WorkerError: a worker failed; what it says is above.
    """
    progress = Progress(experiment, store)
    if progress.show(out, last=True):
        return True
    context = multiprocessing.get_context("spawn")
    arguments = experiment, store, seconds
    processes = [context.Process(target=_worker, args=arguments) for _ in range(workers)]
    for each in processes:
        each.start()
    try:
        while any(each.is_alive() for each in processes):
            for each in processes:
                each.join(WAIT)
            progress.show(out)
    except KeyboardInterrupt:
        # after Ctrl-C they know already; they keep where they stand
        for each in processes:
            each.terminate()
        for each in processes:
            each.join()
        raise
    failed = [each.exitcode for each in processes if each.exitcode]
    if failed:
        raise WorkerError(f"{len(failed)} of {workers} workers failed: see above")
    return progress.show(out, last=True)


class Progress:
    """How many runs of an experiment are done, and how long the others will take."""

    def __init__(self, experiment, store):
        self.experiment, self.store = experiment, store
        self.begin, self.before = time.monotonic(), self._cost(self._split()[0])
        self.shown = 0

    def _split(self):
        runs = self.experiment.runs(self.store)
        done = [s for s in runs if self.store.find(s)]
        return done, len(runs)

    def _cost(self, runs):
        """Of a run, the rows that it trains on: what takes the time among runs of one model."""
        return sum(s["steps"] * s["feed"]["batch"] for s in runs)

    def show(self, out, last=False):
        done, count = self._split()
        if (len(done) == self.shown and not last) or not count:
            return len(done) == count
        self.shown = len(done)
        new = self._cost(done) - self.before
        left = self._cost(self.experiment.runs(self.store)) - self._cost(done)
        took = time.monotonic() - self.begin
        ahead = f", {took * left / new / 60:.0f} min left" if new and left else ""
        print(
            f"{self.experiment.name}: {len(done)} of {count} runs, {took / 60:.1f} min{ahead}",
            file=out,
            flush=True,
        )
        return len(done) == count
