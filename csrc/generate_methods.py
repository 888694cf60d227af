# SPDX-License-Identifier: MIT
"""Writes emanest/methods/__init__.py: every lookahead method of the folder, by name.

Written out, so that editors and type checkers know the names. A file of the folder defines one
method, a class with a ``name`` of its own.
"""

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "emanest" / "methods"
TOP = """\
# SPDX-License-Identifier: MIT
\"\"\"The lookahead methods, one file each; `make rules` writes this list.\"\"\"\
"""


def methods(folder=FOLDER):
    """File without suffix -> its method."""
    found = {}
    for path in sorted({*folder.glob("[a-z]*.py")} - {folder / "method.py"}):
        for each in ast.parse(path.read_text()).body:
            if isinstance(each, ast.ClassDef) and [*map(ast.unparse, each.bases)] == ["Method"]:
                found[path.stem] = each.name
    return found


def generate(folder=FOLDER):
    """The text of the list."""
    found = methods(folder)
    imports = [f"from .{file} import {name}" for file, name in found.items()]
    # as ruff sorts them: constants, then classes
    names = sorted(found.values(), key=lambda name: (not name.isupper(), name))
    return "\n".join(
        [TOP, "", *imports, "", "__all__ = [", *(f'    "{n}",' for n in names), "]", ""]
    )


if __name__ == "__main__":
    (FOLDER / "__init__.py").write_text(generate())
