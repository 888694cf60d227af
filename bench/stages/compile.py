# SPDX-License-Identifier: MIT
"""Compile what later stages need on all cores, unless it was brought along.

Triton compiles when a kernel is first launched, one at a time. Here many processes launch kernels
on a GPU that is not there: the same path, the same cache, and the real GPU stays idle.
"""

import collections
import multiprocessing
import os
import time
from pathlib import Path

import torch
import triton

from .. import no_gpu
from ..no_gpu import driver
from . import Found, kernels, tests

COUNTS = collections.Counter()


def noted(*, cache_hit, **ignored):
    """What Triton tells of each kernel that it has compiled or found."""
    COUNTS["found" if cache_hit else "compiled"] += 1


def work(key):
    """Do one job; what it took."""
    COUNTS.clear()
    try:
        JOBS[key]()
    except Exception as error:
        return f"{key}: {type(error).__name__}: {(str(error) or '-').splitlines()[0]}", {}
    return None, dict(COUNTS)


def run(settings):
    global JOBS
    start = time.monotonic()
    no_gpu.install(compute=False)
    driver.build_launchers(settings.work)
    triton.knobs.compilation.listener = noted
    JOBS = kernels.jobs(settings)
    cores = min(14, os.cpu_count())
    # all at once, by this thread: others do not know that the GPU is not there
    fork = multiprocessing.get_context("fork")
    with fork.Pool(cores, torch.set_num_threads, (1,)) as pool:
        done = pool.map(work, list(JOBS), chunksize=1)
    counts = collections.Counter()
    for _, each in done:
        counts.update(each)
    failed = [words for words, _ in done if words]
    seconds = time.monotonic() - start
    lines = [
        *failed,
        f"{len(JOBS)} jobs: {counts['found']} kernels were in the cache, {counts['compiled']} were "
        f"compiled, {seconds:.1f} s",
    ]
    if counts["compiled"] > counts["found"] and not settings.brief:
        # most were not brought along: those of the tests will not be there either
        left = settings.seconds - seconds
        passed, *_ = tests.run_tests(*tests.SETS["all"], [], without_gpu=True, seconds=left)
        lines.append(
            f"tests without a GPU, for their kernels: {passed['passed']} passed, "
            f"{passed['failed']} failed, {time.monotonic() - start - seconds:.0f} s"
        )
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    lines.append(f"{len(list(cache.glob('*/*.cubin')))} kernels in the cache")
    return Found(lines, dict(counts), not failed)
