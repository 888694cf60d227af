# SPDX-License-Identifier: MIT
"""The measurement: check first, then time all variants of a case in turn.

Nothing here knows of pytest. A machine drifts by more than the differences of interest, so the
variants of a case take turns, in a new random order in each round, and a ratio is one of medians of
the same rounds.
"""

import statistics

import torch

from emanest import backends

from . import predict
from .case import label
from .check import Disagreement, Skipped, check_spots, drawn, errors, leaves, tried
from .devices import CACHE_BYTES, graph_pool, surroundings
from .models import parameters, shrunk
from .roofline import CEILINGS
from .running import Running, Turn, in_turn
from .table import VARIANTS
from .variants import Stepper, Variant

CEILING = "ceiling"


class OtherBackend(RuntimeError):
    """A back end served a case that was not to."""


def measure(case, shapes=None, rounds=None, cache_bytes=CACHE_BYTES):
    """Check and time a case.

    Args:
        case: a row of ``cases.CASES``.
        shapes: of another model, for a quick look at whether all of this still works.
        rounds: timed rounds; None: as many as the device's time for a case allows.
        cache_bytes: how much is read before each timed call.

    Returns:
        The ``label`` of each variant and timing, the ceiling among them -> Entry or Skipped.

    Raises:
        Disagreement: a variant of ours computes something else; nothing was timed.
        OtherBackend: another back end took over meanwhile.
    """
    model = case.model if shapes is None else f"{case.model} (shrunk)"
    shapes = case.shapes if shapes is None else shapes
    # first of all, since the load is to be that of others
    about = surroundings(case.device)
    backend = backends.pick(case.device).__name__
    checked = errors(case, shapes)
    skipped = {name: each for name, each in checked.items() if isinstance(each, Skipped)}
    gradients = drawn(shapes, case.device, case.dtype, 1, spread=case.spread)

    def fresh():
        return leaves(drawn(shapes, case.device, case.dtype, 0, case.sigma), gradients)

    # first, while its parameters, of which it keeps none, have room
    ceiling, ceiling_turns = _ceiling_turns(case, fresh(), skipped)
    running = _all_running(case, fresh, gradients, skipped)
    steppers = {name: _steppers(running, name) for name in case.variants}
    skipped.update(check_spots(case, steppers, shapes))
    turns = [*_turns(case, running, skipped), *ceiling_turns]
    turns, untimed = in_turn(turns, case.device, rounds, cache_bytes)
    skipped.update(untimed)
    served = backends.pick(case.device).__name__
    if served != backend:
        raise OtherBackend(f"{case.name}: {backend} was to serve it, {served} took over")

    common = {
        **about,
        **{"case": case.name, "model": model, "backend": backend},
        **{"dtype": str(case.dtype).removeprefix("torch."), "tensors": len(shapes)},
        "params": parameters(shapes),
    }
    entries = {each.label: each.entry(common) for each in turns}
    for each in turns:
        info, samples = entries[each.label].info, entries[each.label].samples
        error = checked.get(each.label, checked.get(each.name))
        predicted = predict.seconds(case, each.name, about["machine"]).get(each.timing)
        info.update(error=error, predicted=predicted)
        info.update(_rates(case, each, ceiling, entries))
        info.update(_work(case, each.name, shapes, samples))
    reasons = {name: each.reason for name, each in skipped.items()}
    entries[case.ours].info.update(claims=case.claims, skipped=reasons)
    return {**entries, **skipped}


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


def _all_running(case, fresh, gradients, skipped):
    """Label -> what runs at full size; adds to ``skipped`` what does not.

    Numbers on the device are a thing of their own: a second one is made for replays, except of a
    flat variant, which knows no other numbers and is captured as it is.
    """
    running, versions = {}, [g._version for g in gradients]
    for name in case.variants:
        variant = VARIANTS[name]
        for timing in ("idle", "replayed"):
            key = label(name, timing)
            wanted = timing in case.timings and not {name, key} & skipped.keys()
            if not wanted or (timing == "replayed" and variant.flat):
                continue
            capturable = timing == "replayed"
            own = variant.own and not capturable
            each = tried(Running, case, variant, fresh(), capturable, own=own)
            if versions != [g._version for g in gradients]:
                raise Disagreement(f"{case.name}: {name} overwrites the gradients of the others")
            if isinstance(each, Skipped):
                skipped[key] = each
            else:
                running[key] = each
    return running


def _steppers(running, name):
    keys = [label(name, timing) for timing in ("idle", "replayed")]
    return [running[key].stepper for key in keys if key in running]


def _turns(case, running, skipped):
    """Every variant in every timing that can be had."""
    pool, turns = graph_pool(case.device), []
    for name in case.variants:
        for timing in case.timings:
            key = label(name, timing)
            flat = VARIANTS[name].flat
            each = running.get(key if timing == "replayed" and not flat else name)
            if each is None or {name, key} & skipped.keys():
                continue
            step = each.stepper.step
            if timing == "replayed":
                step = tried(each.replay, pool, own=False)
                if isinstance(step, Skipped):
                    skipped[key] = step
                    continue
            turns.append(Turn(name, timing, each, step))
    return turns


def _ceiling_turns(case, params, skipped):
    """What moves bytes and does nothing else, and its turns; none where bytes are not counted."""
    traffic = VARIANTS[case.ours].traffic
    if traffic is None:
        return None, []

    def start():
        ceiling = CEILINGS[case.device](params, traffic)
        variant = Variant("ceiling", lambda *_: Stepper(ceiling.step), traffic, flat=True)
        return ceiling, Running(case, variant, params)

    started = tried(start, own=False)
    if isinstance(started, Skipped):
        skipped[CEILING] = started
        return None, []
    ceiling, running = started
    timings = [timing for timing in case.timings if timing != "replayed"]
    return ceiling, [Turn(CEILING, each, running, ceiling.step) for each in timings]


def _rates(case, turn, ceiling, entries):
    """Bytes of a step by its formula, and the rates that follow; empty where not counted."""
    entry, top = entries[turn.label], entries.get(label(CEILING, turn.timing))
    if turn.name == CEILING:
        moved = ceiling.bytes
    else:
        traffic = VARIANTS[turn.name].traffic
        if traffic is None:
            return {}
        moved = traffic.bytes(case.dtype) * entry.info["params"]
    rate = moved / statistics.median(entry.samples)
    found = {"bytes": moved, "gigabytes_per_second": rate / 1e9}
    if top is not None:
        found["share"] = rate * statistics.median(top.samples) / ceiling.bytes
    return found


def _work(case, name, shapes, samples):
    """Useful operations of a step by their formula, and the rate; empty where not counted."""
    row = VARIANTS.get(name)
    if row is None or row.work is None:
        return {}
    flops = row.work.flops(shapes, case.device, row.arithmetic(case.device, case.dtype))
    return {"flops": flops, "gigaflops_per_second": flops / statistics.median(samples) / 1e9}
