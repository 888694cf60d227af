"""One Markdown table of ratios from the JSON of a run: ``python bench/report.py file.json``.

Reads what pytest-benchmark writes and what ``bench/gpu.py`` writes; needs nothing but Python.
"""

import json
import sys
from typing import NamedTuple


class Entry(NamedTuple):
    """A variant's times in seconds and what else is known of it."""

    name: str
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
    *("case", "quantity", "value", "must", "stretch", ""),
    *("ours, ms", "peer, ms", "GB/s", "of ceiling", "GFLOP/s", "peer's", "error", "peer's"),
)


def entries(data):
    """The entries of a run: case -> name -> Entry."""
    found = {}
    for each in data["benchmarks"]:
        info, stats = each["extra_info"], each["stats"]
        entry = Entry(info["variant"], stats["median"], stats["q1"], stats["q3"], info)
        found.setdefault(info["case"], {})[info["variant"]] = entry
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


def row(ours, peer, quantity, must, stretch):
    """The cells of one claim."""
    quantity = QUANTITIES[quantity]
    info = ours.info
    value = quantity.compute(ours, peer)
    return (
        f"{info['case']}: {info['model']}, {info['dtype']}",
        quantity.text.format(peer=peer and peer.name),
        f"{value:.2f}",
        number(must, "g"),
        number(stretch, "g"),
        verdict(value, must, stretch, quantity.least),
        milliseconds(ours),
        milliseconds(peer) if peer else "",
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
        for ours in variants.values():
            for quantity, peer, must, stretch in ours.info.get("claims", ()):
                if peer is None or peer in variants:
                    needed = {"share": "share", "state": "state_bytes"}.get(quantity)
                    if needed is None or ours.info.get(needed) is not None:
                        yield row(ours, variants.get(peer), quantity, must, stretch)


def header(cases):
    """Where and when, from any entry."""
    info = next(entry.info for variants in cases.values() for entry in variants.values())
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


def report(data):
    """The whole text."""
    cases = entries(data)
    if not cases:
        return "nothing was measured"
    infos = [entry.info for variants in cases.values() for entry in variants.values()]
    # the case before leaves at most its own threads in the average of the last minute
    busy = [i["load"] for i in infos if (i["load"] or 0) > i["threads"] + 0.5]
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows(cases)]
    lines = [header(cases), "", *("| " + " | ".join(cells) + " |" for cells in table)]
    lines += ["", "Times are medians (first to third quartile); errors are those against a float64"]
    lines += ["run, relative to how far the parameters moved. GFLOP/s are those of the operations"]
    lines += ["that Newton-Schulz needs, by its formula, over the time of the whole step."]
    if busy:
        lines += [
            "",
            f"**The machine was busy (load {max(busy):.1f} before a case): run it again.**",
        ]
    missing = [*skipped(cases), *(f"- {line}" for line in data.get("failed", ()))]
    return "\n".join([*lines, *(["", "Not run:", "", *missing] if missing else [])])


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(report(json.load(file)))
