"""Imports go one way: every module of the package is held to the table below."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# module -> modules of the package that it may import, anywhere in its text
IMPORTS = {
    "rules": set(),
    "schedules": set(),
    "storage": set(),
    "capture": set(),
    "shards": {"storage"},
    "options": {"shards", "storage"},
    "_C": set(),  # the extension
    "bases": set(),
    "coefficients": {"options"},
    "checks": {"bases", "coefficients", "options"},
    "products": set(),
    "cpu_products": {"_C", "products"},
    "newton_schulz": {
        *("backends", "checks", "coefficients", "layout", "options", "products", "storage"),
    },
    "shapes": set(),
    "search": {
        *("backends", "bases", "capture", "checks", "coefficients", "newton_schulz"),
        *("products", "rules", "shapes"),
    },
    "exchange": set(),
    "spread": {"exchange", "newton_schulz", "rules", "search", "shapes"},
    "orthogonal": {"bases", "rules", "search", "shapes", "shards", "spread"},
    "split": set(),
    "backends": {"capture", "storage"},
    "layout": set(),
    "watch": {"_C", "storage"},
    "eager": {"layout", "products", "rules", "tape"},
    "cpp": {"_C", "cpu_products", "eager", "layout", "products"},
    "kernels": {"capture", "eager", "layout", "rules", "storage", "watch"},
    "lookahead": {"options", "rules", "schedules"},
    "scalars": {"storage"},
    "writes": {"watch"},
    "bucket": {"layout", "rules", "scalars", "shapes", "shards", "storage", "writes"},
    "buckets": {"bucket", "layout", "shards", "storage"},
    "gradients": {"options", "shards", "storage"},
    "groups": {"backends", "checks", "gradients", "lookahead", "options", "rules", "shards"},
    "tape": set(),
    "device": {"backends", "groups", "lookahead", "shards", "tape"},
    "survey": {"buckets", "capture", "gradients", "groups", "shards", "watch"},
    "launches": {"backends", "bucket", "device", "groups", "lookahead", "shards"},
    "verdict": {"backends", "checks", "gradients", "launches", "shards", "watch"},
    "saved": {"bucket", "groups", "lookahead", "options", "shards", "storage"},
    "checkpoint": {"bucket", "checks", "gradients", "groups", "lookahead", "options", "saved"},
    "points": {"backends", "capture", "lookahead", "options", "rules"},
    "metrics": {"capture", "lookahead", "points", "shards"},
    "analysis": {"bases", "checks", "lookahead", "options", "rules"},
    "optimizer": {
        *(
            "backends",
            "bases",
            "buckets",
            "capture",
            "checkpoint",
            "checks",
            "gradients",
            "groups",
            "launches",
            "lookahead",
            "metrics",
        ),
        *("options", "points", "rules", "survey", "verdict", "watch"),
    },
    "optimizers": {"bases", "bucket", "lookahead", "optimizer", "options", "rules"},
    "muon": {"bases", "optimizer", "options", "orthogonal"},
    "inner": {"checkpoint", "groups", "options"},
    "wrap": {
        *("backends", "checkpoint", "gradients", "groups", "inner", "lookahead", "optimizer"),
        *("options", "rules"),
    },
    "probe": {"backends", "lookahead", "optimizer", "options"},
    "find": {"optimizer", "points"},
    "iterate": {"find"},
    "integrations": {"find"},  # never imported by the others
    "__init__": {
        *("find", "iterate", "lookahead", "muon", "newton_schulz", "optimizer", "optimizers"),
        *("probe", "schedules", "split", "wrap"),
    },
    "doctor": {"__init__", "backends", "eager", "tape"},
}

# module -> modules from outside that it may import; the rest have PLAIN
PLAIN = {"torch", *sys.stdlib_module_names}
OUTSIDE = {
    "rules": set(),
    "schedules": set(sys.stdlib_module_names),
    "tape": set(sys.stdlib_module_names),
    "kernels": {"triton", *PLAIN},
    "integrations": {"lightning", "transformers", *PLAIN},
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


def row(module):
    """The name under which the tables know a module: its first part."""
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
            # in "from emanest import rules" the name may be a module, elsewhere it cannot matter
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from names if base == "emanest" else [base]


def split(module, text):
    """What a module imports: rows of the package, and top-level names from outside."""
    inside, outside = set(), set()
    for name in imported(module, text):
        top, _, below = name.partition(".")
        if top != "emanest":
            outside.add(top)
        else:
            inside.add(row(below) if row(below) in IMPORTS or below in FILES else "__init__")
    return inside - {row(module)}, outside - {"__future__"}


def test_table_and_modules_are_the_same():
    assert {row(module) for module in FILES} == set(IMPORTS)
    assert set(OUTSIDE) <= set(IMPORTS)


def test_table_goes_one_way():
    graphlib.TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"_C"}))
def test_imports_are_in_the_table(module):
    inside, outside = split(module, FILES[module].read_text())
    assert inside <= IMPORTS.get(row(module), set())
    assert outside <= OUTSIDE.get(row(module), PLAIN)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("eager", "from . import rules", ({"rules"}, set())),
        ("eager", "from .rules import sgd", ({"rules"}, set())),
        ("eager", "from emanest import rules", ({"rules"}, set())),
        ("eager", "from emanest.rules import sgd", ({"rules"}, set())),
        ("eager", "import emanest.rules as r", ({"rules"}, set())),
        ("eager", "from emanest import AdamW", ({"__init__"}, set())),
        ("eager", "import emanest", ({"__init__"}, set())),
        ("eager", "def f():\n    from emanest import rules, wrap", ({"rules", "wrap"}, set())),
        ("__init__", "from .rules import sgd", ({"rules"}, set())),
        ("kernels", "from .. import rules\nfrom . import launch", ({"rules"}, set())),
        ("kernels.launch", "from ..rules import sgd\nimport triton", ({"rules"}, {"triton"})),
        ("wrap", "import tests.textbook, torch.nn as nn", (set(), {"tests", "torch"})),
        ("wrap", "from __future__ import annotations\nfrom math import pi", (set(), {"math"})),
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
