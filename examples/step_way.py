# SPDX-License-Identifier: MIT
"""Draw the calls of one step in order, from a trace: AdamW + EMA-Nesterov on the C++ back end.

    python examples/step_way.py --out docs/step_way.svg

Shown is every call from one module into another. On the left is the tree of calls, numbered as in
docs/architecture.md; on the right are the rooms of the package that the calls go through.
"""

import argparse
import html
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

import emanest
from emanest.backends import cpp

# rooms that a step goes through; a room imports only those to its right
LANES = (
    *("optimizers", "step", "groups", "state", "methods"),
    *("values", "schedules", "backends", "_C"),
)
COLORS = (
    *("#555555", "#1f6fb4", "#b8860b", "#2a8c55", "#8e5ea2"),
    *("#999999", "#c28fd6", "#d95f02", "#b02a37"),
)
TREE, LANE, ROW, TOP, INDENT = 390, 64, 17, 46, 16


class Call(NamedTuple):
    """The entry of a function, or of a generator each time it goes on."""

    module: str  # below ``emanest``; "_C" is the extension
    function: str
    caller: int | None  # its index among the calls of the trace
    resumed: bool = False

    @property
    def room(self):
        return self.module.partition(".")[0]


def _module(frame):
    name, _, below = frame.f_globals.get("__name__", "").partition(".")
    # what is made by exec, as a dataclass's methods are, has no file
    written = not frame.f_code.co_filename.startswith("<")
    return (below or "__init__") if name == "emanest" and written else None


def trace(work):
    """Every call of a Python function of the package that some work makes, and of C++ steps."""
    calls: list[Call] = []
    active: dict[Any, int] = {}  # frame -> its index among the calls
    generators = set()
    compiled = cpp._C.step_

    def caller(frame):
        while frame is not None and frame not in active:
            frame = frame.f_back
        return None if frame is None else active[frame]

    def hook(frame, event, _):
        if event == "return":
            active.pop(frame, None)
        module = _module(frame) if event == "call" else None
        if module is not None:
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            call = Call(module, name, caller(frame.f_back), frame in generators)
            active[frame] = len(calls)
            calls.append(call)
            if frame.f_code.co_flags & 0x20:  # inspect.CO_GENERATOR
                generators.add(frame)

    def step_(rules, *args):
        calls.append(Call("_C", f"step_({', '.join(rules)})", caller(sys._getframe(1))))
        return compiled(rules, *args)

    with mock.patch.object(cpp._C, "step_", step_):
        sys.setprofile(hook)
        try:
            work()
        finally:
            sys.setprofile(None)
    return calls


def steady_step():
    """A step of four small matrices that finds everything as the last one left it."""
    params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(4)]
    optimizer = emanest.AdamW(params, lookahead=emanest.EMANesterov(), backend="cpp")
    for p in params:
        p.grad = torch.ones(8, 8)
    for _ in range(3):
        optimizer.step()
    return optimizer.step


class Row(NamedTuple):
    """A call into another module, as the figure shows it."""

    module: str
    label: str
    above: int | None  # the row that it is called from
    depth: int
    number: int | None  # of the calls that the optimizer makes itself


def rows(calls):
    """The calls from one module into another, repetitions in a row once."""
    found, row_of, numbers = [], {}, 0
    for i, call in enumerate(calls):
        above = None if call.caller is None else row_of[call.caller]
        if above is not None and found[above].module == call.module:
            row_of[i] = above
            continue
        label = f"end of {call.function}" if call.resumed else call.function
        if found and found[-1][:3] == (call.module, label, above):
            row_of[i] = len(found) - 1
            continue
        depth = 0 if above is None else found[above].depth + 1
        numbers += depth == 1
        row_of[i] = len(found)
        found.append(Row(call.module, label, above, depth, numbers if depth == 1 else None))
    return found


def _file(module):
    """How a reader finds a module: its file, without the room, which the lane tells."""
    if module == "_C":
        return "csrc"
    name = module.rpartition(".")[2]
    return "__init__.py" if module == "backends" else f"{name}.py"


def _text(x, y, text, **attributes):
    given = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f'<text x="{x}" y="{y}"{given}>{html.escape(text)}</text>'


def draw(found):
    """The figure of some rows, as SVG."""
    width, height = TREE + LANE * len(LANES), TOP + ROW * len(found) + 8
    x = {room: TREE + LANE * i + LANE // 2 for i, room in enumerate(LANES)}
    color = dict(zip(LANES, COLORS, strict=True))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="monospace" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(8, 18, "opt.step(): AdamW + EMA-Nesterov, C++", font_weight="bold", font_size=13),
        _text(8, 34, "calls from one file into another, in order", fill="#777777"),
    ]
    for i, room in enumerate(LANES):
        y = 18 if i % 2 else 32
        label = "csrc" if room == "_C" else room
        lines += [
            _text(x[room], y, label, text_anchor="middle", fill=color[room], font_weight="bold"),
            f'<path d="M{x[room]} {TOP - 8}V{height - 8}" stroke="#e4e4e4"/>',
        ]
    at = []
    for i, row in enumerate(found):
        room = row.module.partition(".")[0]
        y = TOP + ROW * i + ROW // 2
        at.append((x[room], y))
        if row.number is not None:
            lines.append(
                f'<path d="M0 {TOP + ROW * i}H{width}" stroke="#cccccc" stroke-dasharray="2 3"/>'
            )
            lines.append(_text(22, y + 4, str(row.number), text_anchor="end", font_weight="bold"))
        if row.above is not None:
            (from_x, from_y), (to_x, _) = at[row.above], at[i]
            stem = color[found[row.above].module.partition(".")[0]]
            lines += [
                f'<path d="M{from_x} {from_y}V{y}" stroke="{stem}"/>',
                f'<path d="M{from_x} {y}H{to_x}" stroke="{color[room]}"/>',
            ]
        lines.append(f'<circle cx="{x[room]}" cy="{y}" r="4" fill="{color[room]}"/>')
        start, file = 30 + INDENT * max(row.depth - 1, 0), _file(row.module)
        weight = "bold" if row.depth < 2 else "normal"
        lines.append(_text(start, y + 4, file, fill=color[room]))
        lines.append(_text(start + 7 * len(file) + 5, y + 4, row.label, font_weight=weight))
    return "\n".join([*lines, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/step_way.svg"), help="the SVG")
    out = parser.parse_args().out
    out.write_text(draw(rows(trace(steady_step()))))
    print(out)


if __name__ == "__main__":
    main()
