"""The measurement: check first, then time all variants of a case in turn.

Nothing here knows of pytest. A machine drifts by more than the differences of interest, so the
variants of a case take turns, in a new random order in each round, and a ratio is one of medians of
the same rounds.
"""

import functools
import gc
import importlib.metadata
import random
import statistics
from typing import NamedTuple

import torch

from emanest import backends

from . import variants
from .check import Disagreement, Skipped, check_spots, drawn, errors, leaves
from .devices import CACHE_BYTES, DEVICES, Cache, capture, side_stream, surroundings
from .models import parameters, shrunk
from .roofline import Streams
from .table import VARIANTS
from .variants import Stepper, Variant

CEILING = "ceiling"


class Entry(NamedTuple):
    """What was measured of a variant."""

    samples: list[float]  # seconds per step
    info: dict


class Running:
    """A variant at full size, warmed up."""

    def __init__(self, case, variant, params):
        self.case, self.variant = case, variant
        self.gradients, self.spoiled = [p.grad for p in params], []
        versions = [g._version for g in self.gradients]
        if variant.spoils:
            self.spoiled = [g.clone() for g in self.gradients]
            leaves(params, self.spoiled)
        memory, count = DEVICES[case.device].memory, sum(p.numel() for p in params)
        with memory() as first:
            self.stepper = variants.build(variant.make, params, case.captured)
            self._warm_up(1)
        with memory() as later:
            self._warm_up(1)
        self._warm_up(case.warm_up - 2)
        step = capture(self.stepper.step) if case.captured else self.stepper.step
        self.call = step if case.steps == 1 else lambda: [step() for _ in range(case.steps)]
        self.samples, self.host = [], []
        # per parameter; that of a flat variant includes copies that are no state
        self.state_bytes = None if variant.flat else first.held / count
        self.transient_bytes = (later.peak - max(later.held, 0)) / count
        if versions != [g._version for g in self.gradients]:
            raise Disagreement(f"{case.name}: a variant overwrites the gradients of the others")

    def _restore(self):
        """What the backward pass would have written anew."""
        if self.spoiled:
            torch._foreach_copy_(self.spoiled, self.gradients)

    def _warm_up(self, steps):
        for _ in range(steps):
            self._restore()
            if self.case.captured:
                with side_stream():
                    self.stepper.step()
            else:
                self.stepper.step()

    def sample(self, time):
        """Time one call."""
        self._restore()
        seconds, host = time(self.call)
        self.samples.append(seconds / self.case.steps)
        self.host.append(host / self.case.steps)

    def entry(self, common):
        """What was measured."""
        half = len(self.samples) // 2
        return Entry(
            self.samples,
            {
                **common,
                "family": self.variant.family,
                "package": _version(self.variant.needs or "torch"),
                "host": statistics.median(self.host),
                # two repeats: what differs by less is noise
                "halves": [
                    statistics.median(self.samples[:half] or self.samples),
                    statistics.median(self.samples[half:]),
                ],
                "state_bytes": self.state_bytes,
                "transient_bytes": self.transient_bytes,
            },
        )


@functools.cache
def _distributions():
    return importlib.metadata.packages_distributions()


def _version(package):
    name = _distributions()[package][0]
    return f"{name} {importlib.metadata.version(name)}"


def in_turn(running, device, rounds=None, cache_bytes=CACHE_BYTES):
    """Time everyone once per round, in a new order each round."""
    order, cache, clock = random.Random(0), Cache(device, cache_bytes), DEVICES[device]
    turns = list(running)

    def round_():
        order.shuffle(turns)
        for each in turns:
            if each.case.cold:
                cache.evict()
            each.sample(clock.time)

    gc.collect()
    gc.disable()
    try:
        round_()
        cycle = sum(each.samples[0] * each.case.steps for each in turns)
        for each in turns:
            each.samples.clear()
            each.host.clear()
        for _ in range(rounds or clock.rounds_of(cycle)):
            round_()
    finally:
        gc.enable()


def ceiling_of(case):
    """The variant that does nothing but move what ours moves; None if that was not counted."""
    traffic = VARIANTS[case.ours].traffic

    def make(params, capturable):
        return Stepper(Streams(params, traffic).step)

    return traffic and Variant("ceiling", make, traffic, flat=True)


def add_ceiling(case, running, params):
    """Where the compiler works, let the ceiling take its turns with the others."""
    variant = ceiling_of(case)
    if variant is None:
        return None
    try:
        running[CEILING] = Running(case, variant, params)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
    return None


def measure(case, shapes=None, rounds=None, cache_bytes=CACHE_BYTES):
    """Check and time a case.

    Args:
        case: a row of ``cases.CASES``.
        shapes: of another model, for a quick look at whether all of this still works.
        rounds: timed rounds; None: as many as the device's time for a case allows.
        cache_bytes: how much is read before each timed call.

    Returns:
        The name of each variant, the ceiling among them -> Entry or Skipped.

    Raises:
        Disagreement: a variant computes something else; nothing was timed.
    """
    model = case.model if shapes is None else f"{case.model} (shrunk)"
    shapes = case.shapes if shapes is None else shapes
    # first of all, since the load is to be that of others
    about = surroundings(case.device)
    checked = errors(case, shapes)
    skipped = {k: v.reason for k, v in checked.items() if isinstance(v, Skipped)}
    gradients = drawn(shapes, case.device, case.dtype, 1, spread=case.spread)

    def fresh():
        return leaves(drawn(shapes, case.device, case.dtype, 0, case.sigma), gradients)

    running = {n: Running(case, VARIANTS[n], fresh()) for n in case.variants if n not in skipped}
    check_spots(case, {k: each.stepper for k, each in running.items()}, shapes)
    reason = add_ceiling(case, running, fresh())
    if reason is not None:
        skipped[CEILING] = reason
    in_turn(running.values(), case.device, rounds, cache_bytes)

    common = {
        **about,
        **{"case": case.name, "model": model, "captured": case.captured},
        "backend": backends.pick(case.device).__name__,
        **{"dtype": str(case.dtype).removeprefix("torch."), "tensors": len(shapes)},
        "params": parameters(shapes),
    }
    entries = {name: each.entry(common) for name, each in running.items()}
    for name, entry in entries.items():
        entry.info.update(variant=name, error=checked.get(name))
        entry.info.update(rates(case, name, entries))
        entry.info.update(work(case, name, shapes, entry.samples))
    entries[case.ours].info.update(claims=case.claims, skipped=skipped)
    return {**entries, **{name: Skipped(reason) for name, reason in skipped.items()}}


def quick(case):
    """``measure`` in a second: a tiny model, two rounds, one thread, and nothing is compiled."""
    threads = torch.get_num_threads()
    # tiny products that wait for each other's threads take seconds where others are at work
    torch.set_num_threads(1)
    try:
        with torch.compiler.set_stance("force_eager"):
            return measure(case, shrunk(case.shapes), rounds=2, cache_bytes=4096)
    finally:
        torch.set_num_threads(threads)


def rates(case, name, entries):
    """Bytes of a step by its formula, and the rates that follow; empty where not counted."""

    def rate(name, traffic):
        samples, info = entries[name]
        count = min(info["params"], Streams.most) if name == CEILING else info["params"]
        moved = traffic.bytes(case.dtype) * count
        return moved, moved / statistics.median(samples) / 1e9

    ceiling = VARIANTS[case.ours].traffic
    traffic = ceiling if name == CEILING else VARIANTS[name].traffic
    if traffic is None:
        return {}
    moved, gigabytes = rate(name, traffic)
    found = {"bytes": moved, "gigabytes_per_second": gigabytes}
    if CEILING in entries:
        found["share"] = gigabytes / rate(CEILING, ceiling)[1]
    return found


def work(case, name, shapes, samples):
    """Useful operations of a step by their formula, and the rate; empty where not counted."""
    row = VARIANTS.get(name)
    if row is None or row.work is None:
        return {}
    flops = row.work.flops(shapes, case.device, row.arithmetic(case.device, case.dtype))
    return {"flops": flops, "gigaflops_per_second": flops / statistics.median(samples) / 1e9}
