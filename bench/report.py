# SPDX-License-Identifier: MIT
"""Markdown tables from the JSON of runs: ``python bench/report.py file.json [file.json ...]``.

Ratios, and, where a step was timed in several ways, those times side by side; with ``--page`` only
what was asked for and where a peer is faster, as in ``docs/speed.md``. Reads what pytest-benchmark
writes and what ``bench/gpu.py`` writes; needs nothing but Python.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A variant's times in seconds and what else is known of it."""

    name: str
    timing: str  # "queued", "idle" or "replayed", as in clocks.py
    median: float
    q1: float
    q3: float
    info: dict


class Quantity(NamedTuple):
    """A number made from our entry and a peer's."""

    text: str
    compute: object  # (ours, peer) -> number
    least: bool  # whether more is better


QUANTITIES = {
    "speedup": Quantity("{peer} / ours", lambda ours, peer: peer.median / ours.median, True),
    "cost": Quantity("ours / {peer}", lambda ours, peer: ours.median / peer.median, False),
    "state": Quantity(
        "bytes per parameter beyond {peer}",
        lambda ours, peer: ours.info["state_bytes"] - peer.info["state_bytes"],
        False,
    ),
    "transient": Quantity(
        "transient bytes per parameter", lambda ours, peer: ours.info["transient_bytes"], False
    ),
    "share": Quantity("share of the ceiling", lambda ours, peer: ours.info["share"], True),
    "accuracy": Quantity(
        "error of {peer} / error of ours",
        lambda ours, peer: peer.info["error"] / ours.info["error"],
        True,
    ),
    "lookahead": Quantity(
        "% of ours beyond {peer}", lambda ours, peer: 100 * (1 - peer.median / ours.median), False
    ),
    "host": Quantity("host µs per step", lambda ours, peer: ours.info["host"] * 1e6, False),
    "host of": Quantity(
        "host µs per step, {peer}", lambda ours, peer: peer.info["host"] * 1e6, False
    ),
}

COLUMNS = (
    *("case", "quantity", "timing", "value", "must", "stretch", ""),
    *("ours, ms", "peer, ms", "predicted", "peer's predicted", "GB/s", "of ceiling"),
    *("GFLOP/s", "peer's GFLOP/s", "error", "peer's error"),
)
TIMINGS = ("queued", "idle", "replayed")
TIMES = ("case", "variant", *(f"{t}, ms" for t in TIMINGS), "predicted", "host, µs", "error")


def entries(data):
    """The entries of a run: case -> (variant, timing) -> Entry."""
    found = {}
    for each in data["benchmarks"]:
        info, stats = each["extra_info"], each["stats"]
        times = stats["median"], stats["q1"], stats["q3"]
        entry = Entry(info["variant"], info["timing"], *times, info)
        found.setdefault(info["case"], {})[entry[:2]] = entry
    return found


def verdict(value, must, stretch, least):
    """``ok``, ``ok, stretch`` or ``miss``; nothing where nothing is asked."""

    def reached(bound):
        # as printed: two decimals
        return bound is not None and (round(value, 2) - bound) * (1 if least else -1) >= 0

    if must is None:
        return ""
    return "ok, stretch" if reached(stretch) else "ok" if reached(must) else "miss"


def milliseconds(entry):
    """Median and quartiles."""
    return f"{entry.median * 1e3:.4g} ({entry.q1 * 1e3:.4g} to {entry.q3 * 1e3:.4g})"


def number(value, form):
    """A number that may be missing."""
    return "" if value is None else format(value, form)


def predicted(entry):
    """A prediction in ms; empty where there is none."""
    seconds = entry.info.get("predicted") if entry else None
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def row(ours, peer, claim):
    """The cells of one claim."""
    quantity, _, must, stretch, timing = claim
    quantity = QUANTITIES[quantity]
    info = ours.info
    value = quantity.compute(ours, peer)
    return (
        f"{info['case']}: {info['model']}, {info['dtype']}",
        quantity.text.format(peer=peer and peer.name),
        timing,
        f"{value:.2f}",
        number(must, "g"),
        number(stretch, "g"),
        verdict(value, must, stretch, quantity.least),
        milliseconds(ours),
        milliseconds(peer) if peer else "",
        predicted(ours),
        predicted(peer),
        number(info.get("gigabytes_per_second"), ".1f"),
        number(info.get("share"), ".0%"),
        number(info.get("gigaflops_per_second"), ".4g"),
        number(peer and peer.info.get("gigaflops_per_second"), ".4g"),
        number(info.get("error"), ".1e"),
        number(peer and peer.info.get("error"), ".1e"),
    )


def rows(cases):
    """All claims whose entries are there."""
    for variants in cases.values():
        for entry in variants.values():
            for claim in entry.info.get("claims", ()):
                quantity, peer, _, _, timing = claim
                ours, other = variants.get((entry.name, timing)), variants.get((peer, timing))
                if ours is None or (peer is not None and other is None):
                    continue
                needed = {"share": "share", "state": "state_bytes"}.get(quantity)
                if needed is None or ours.info.get(needed) is not None:
                    yield row(ours, other, claim)


def side_by_side(cases):
    """Medians of every variant, by timing; nothing where there is but one."""
    for case, variants in cases.items():
        if len({timing for _, timing in variants}) == 1:
            continue
        for name in dict.fromkeys(name for name, _ in variants):
            each = {t: variants[name, t] for t in TIMINGS if (name, t) in variants}
            yield (
                case,
                name,
                *(f"{each[t].median * 1e3:.4g}" if t in each else "" for t in TIMINGS),
                " / ".join(predicted(entry) for entry in each.values() if predicted(entry)),
                " / ".join(f"{entry.info['host'] * 1e6:.0f}" for entry in each.values()),
                number(next(iter(each.values())).info.get("error"), ".1e"),
            )


def header(info):
    """Where and when."""
    return (
        f"{info['date']}, commit {info['commit']}, {info['machine']}, {info['units']}, "
        f"{info['threads']} threads, "
        f"torch {info['torch']}, Python {info['python']}, back end {info['backend']}"
    )


def skipped(cases):
    """What did not run, and why."""
    for case, variants in cases.items():
        for entry in variants.values():
            for name, reason in entry.info.get("skipped", {}).items():
                yield f"- {case}: {name}: {reason}"


def markdown(columns, cells):
    """The lines of a table."""
    table = [columns, ["---"] * len(columns), *cells]
    return ["| " + " | ".join(each) + " |" for each in table]


def grouped(runs):
    """(header, cases) of the runs: together what was measured in one place, each case once."""
    groups = []
    for data in runs:
        for case, variants in entries(data).items():
            where = header(next(iter(variants.values())).info)
            for head, cases in groups:
                if head == where and case not in cases:
                    cases[case] = variants
                    break
            else:
                groups.append((where, {case: variants}))
    return groups


NOTE = """\
Times are medians (first to third quartile); errors are those against a float64
run, relative to how far the parameters moved. GFLOP/s are those of the operations
that Newton-Schulz needs, by its formula, over the time of the whole step."""


def section(head, cases):
    """The text of what was measured in one place."""
    infos = [entry.info for variants in cases.values() for entry in variants.values()]
    # the case before leaves at most its own threads in the average of the last minute
    busy = [i["load"] for i in infos if (i["load"] or 0) > i["threads"] + 0.5]
    lines = [head, "", *markdown(COLUMNS, rows(cases)), "", NOTE]
    times = list(side_by_side(cases))
    if times:
        lines += ["", *markdown(TIMES, times)]
    if busy:
        lines += [
            "",
            f"**The machine was busy (load {max(busy):.1f} before a case): run it again.**",
        ]
    missing = list(skipped(cases))
    return "\n".join([*lines, *(["", "Not run:", "", *missing] if missing else [])])


def report(*runs):
    """The whole text, of one run or several."""
    sections = [section(*each) for each in grouped(runs)] or ["nothing was measured"]
    failed = [f"- {line}" for data in runs for line in data.get("failed", ())]
    return "\n\n".join([*sections, *(["Failed:\n\n" + "\n".join(failed)] if failed else [])])


# columns of the documentation's tables
PAGE = (
    *("case", "timing", "quantity", "value", "must", "stretch", "", "ours, ms", "predicted"),
    *("peer, ms", "peer's predicted", "error", "peer's error"),
)
FASTER = "case", "timing", "peer that is faster", "peer / ours", "ours, ms", "peer, ms"


def asked(cases):
    """The claims with bounds, of times the medians alone."""
    for cells in rows(cases):
        named = dict(zip(COLUMNS, cells, strict=True))
        if named["must"]:
            times = {k: named[k].partition(" ")[0] for k in ("ours, ms", "peer, ms")}
            yield [{**named, **times}[column] for column in PAGE]


def faster(cases):
    """Wherever something that computes the same takes less time than ours, in any timing."""
    for case, variants in cases.items():
        ours = next(name for (name, _), e in variants.items() if "claims" in e.info)
        for (name, timing), peer in variants.items():
            own = variants.get((ours, timing))
            alike = own and peer.info.get("family") == own.info.get("family")
            if alike and peer.median < own.median:
                ratio = f"{peer.median / own.median:.2f}"
                yield case, timing, name, ratio, *(f"{1e3 * e.median:.4g}" for e in (own, peer))


def page(*runs):
    """The text of the documentation: what was asked for, and where a peer is faster."""
    sections = [
        "\n".join(
            [head, "", *markdown(PAGE, asked(cases)), "", *markdown(FASTER, faster(cases))],
        )
        for head, cases in grouped(runs)
    ]
    return "\n\n".join(sections)


def read(paths):
    """The runs in some files."""
    return [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--page"]
    print((page if "--page" in sys.argv else report)(*read(arguments)))
