# SPDX-License-Identifier: MIT
"""Imports go one way: every room of the package is held to the table below."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> rooms that its modules import, anywhere in their text; a room is a folder of the package,
# or a module that lies directly in it
ROOMS = {
    "rules": set(),
    "schedules": set(),
    "_C": set(),  # the extension
    "extension": {"_C"},
    "backends": {"extension", "rules"},
    "kernels": {"backends", "rules"},
    "values": {"backends"},
    "methods": {"rules", "schedules", "values"},
    "matrix": {"backends", "rules", "values"},
    "options": {"values"},
    "state": {"backends", "methods", "rules", "values"},
    "groups": {"backends", "methods", "options", "rules", "state", "values"},
    "step": {"backends", "groups", "methods", "state"},
    "optimizers": {
        *("backends", "groups", "matrix", "methods", "options", "rules", "state", "step", "values"),
    },
    "tools": {"methods", "optimizers", "options", "rules", "state", "values"},
    "integrations": {"methods", "optimizers", "tools", "values"},  # never imported by the others
    "__init__": {"matrix", "methods", "optimizers", "schedules", "tools"},
    "doctor": {"backends", "extension"},
    "build": {"extension"},
}

# room -> modules from outside that it may import; the rest have PLAIN
PLAIN = {"torch", *sys.stdlib_module_names}
OUTSIDE = {
    "rules": set(),
    "schedules": set(sys.stdlib_module_names),
    "kernels": {"triton", *PLAIN},
    "integrations": {"lightning", "timm", "torchtitan", "transformers", *PLAIN},
}


def files():
    """Path of each module of the package, by its dotted name below ``emanest``."""
    found = {}
    for folder, prefix in ((ROOT / "emanest", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            name = ".".join(parts)
            found[name.removesuffix(".__init__")] = path
    found["_C"] = ROOT / "csrc" / "bindings.cpp"
    return found


FILES = files()


def room(module):
    """The room of a module: the first part of its name."""
    return module.partition(".")[0]


def imported(module, text):
    """Absolute dotted names that the text of a module imports."""
    package = ["emanest", *module.split(".")]
    if FILES.get(module, Path(module)).name != "__init__.py":
        package = package[:-1]
    elif module == "__init__":
        package = ["emanest"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            # the name may be a module
            yield from (f"{base}.{alias.name}" for alias in node.names)


def split(module, text):
    """What a module imports: modules of the package, and top-level names from outside."""
    inside, outside = set(), set()
    for name in imported(module, text):
        top, _, below = name.partition(".")
        if top != "emanest":
            outside.add(top)
        else:
            # what is no module is a name in one
            parts = [below.rpartition(".")[0], below]
            inside.add(next(filter(FILES.__contains__, reversed(parts)), "__init__"))
    return inside - {module}, outside - {"__future__"}


GRAPH = {
    module: split(module, path.read_text()) if path.suffix == ".py" else (set(), set())
    for module, path in FILES.items()
}


def floors(graph):
    """How many nodes the longest way down a graph has."""
    heights = {}
    for node in graphlib.TopologicalSorter(graph).static_order():
        heights[node] = 1 + max((heights[below] for below in graph[node]), default=0)
    return max(heights.values())


def test_every_room_imports_what_the_table_says():
    found = {room(module): set() for module in GRAPH}
    for module, (inside, _) in GRAPH.items():
        found[room(module)] |= {room(name) for name in inside} - {room(module)}
    assert found == ROOMS


def test_nothing_from_outside_is_imported_but_what_the_table_says():
    for module, (_, outside) in GRAPH.items():
        assert outside <= OUTSIDE.get(room(module), PLAIN), module


def test_imports_go_one_way():
    """Among modules as among rooms, of which there are few, on few floors."""
    graphlib.TopologicalSorter({module: inside for module, (inside, _) in GRAPH.items()}).prepare()
    # kernels/ is a folder beside emanest/
    assert len(ROOMS) - 1 <= 18
    assert floors(ROOMS) <= 11


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("doctor", "from . import rules", ({"rules"}, set())),
        ("doctor", "from .rules import sgd", ({"rules"}, set())),
        ("doctor", "from emanest import rules", ({"rules"}, set())),
        ("doctor", "from emanest.rules import sgd", ({"rules"}, set())),
        ("doctor", "import emanest.rules as r", ({"rules"}, set())),
        ("doctor", "import emanest.step.plan", ({"step.plan"}, set())),
        ("doctor", "from emanest import AdamW", ({"__init__"}, set())),
        ("doctor", "import emanest", ({"__init__"}, set())),
        ("doctor", "def f():\n    from emanest import rules, values", ({"rules", "values"}, set())),
        ("__init__", "from .rules import sgd", ({"rules"}, set())),
        (
            "step.plan",
            "from .. import rules\nfrom . import select",
            ({"rules", "step.select"}, set()),
        ),
        ("step.plan", "from ..state.clock import Clock", ({"state.clock"}, set())),
        ("step.plan", "from ..state import clock", ({"state.clock"}, set())),
        ("step.plan", "from ..backends import call", ({"backends"}, set())),
        ("step", "from .plan import plan", ({"step.plan"}, set())),
        ("kernels.launch", "from ..rules import sgd\nimport triton", ({"rules"}, {"triton"})),
        ("values", "import tests.textbook, torch.nn as nn", (set(), {"tests", "torch"})),
        ("values", "from __future__ import annotations\nfrom math import pi", (set(), {"math"})),
    ],
)
def test_every_spelling_of_an_import_is_seen(module, text, expected):
    assert split(module, text) == expected


def test_importing_emanest_loads_only_torch_and_the_standard_library():
    """And no compiler; whatever torch brings along by itself (numpy, say) is torch's own affair."""
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import emanest
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        compiler = {"torch._dynamo", "torch._inductor"} & set(sys.modules)
        print(*(new - set(sys.stdlib_module_names) - {"torch", "emanest"}), *compiler)
    """
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
