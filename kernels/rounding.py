# SPDX-License-Identifier: MIT
"""Rules with correctly rounded division and square root.

Triton compiles ``/`` and ``sqrt`` of float32 for NVIDIA to ``div.full`` (within 2 units in the last
place) and ``sqrt.approx.ftz`` (within 1, and the root of a subnormal is 0); ``tl.div_rn`` and
``tl.sqrt_rn`` round correctly and take no longer in a pass that waits for memory. Triton has no
option for this, and a change of its operators would reach other people's kernels. Rules are plain
arithmetic, so their text is translated instead.
"""

import ast
import functools
import inspect
import linecache

import triton
import triton.language as tl

from ..rules import FORMULAS

# Triton decides when a function is decorated whether it will be interpreted
INTERPRETED = triton.knobs.runtime.interpret


def inline(function):
    """Mark a function that kernels call.

    The interpreter runs plain functions as well, and several times faster: it patches the whole
    language anew at each call of one of its own.
    """
    return function if INTERPRETED else triton.jit(function)


@inline
def divide(a, b):
    """The nearest number to a / b."""
    # the operators of float64 are exact, and the functions do not take it
    if b.dtype == tl.float64:
        return a / b
    else:  # noqa: RET505 (a branch not taken must not be compiled)
        return tl.div_rn(a, b)


@inline
def root(a):
    """The nearest number to the square root of a."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:  # noqa: RET505
        return tl.sqrt_rn(a)


class _Translation(ast.NodeTransformer):
    """``a / b`` to ``divide(a, b)``."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        return ast.Call(ast.Name("divide", ast.Load()), [node.left, node.right], [])


@functools.cache
def rounded(function, *rules):
    """A rule as a Triton function in which every operation rounds correctly.

    Args:
        function: the rule; or that of a pass, the first of whose arguments are rules.
        rules: these, which the Triton function is not given.
    """
    tree = _Translation().visit(ast.parse(inspect.getsource(function)))
    arguments = tree.body[0].args.args
    scope = {"divide": divide, "root": root, "__name__": __name__}
    scope |= {arguments.pop(0).arg: rounded(rule) for rule in rules}
    called = [f for f in FORMULAS if f.__name__ in function.__code__.co_names]
    scope |= {formula.__name__: rounded(formula) for formula in called}
    names = [each.__name__ for each in (function, *rules)]
    return compiled(ast.unparse(ast.fix_missing_locations(tree)), names, scope)


def compiled(text, names, scope):
    """A function that kernels call, from its text.

    Args:
        text: defines it.
        names: its own, and what else tells it from others.
        scope: what it means by names.
    """
    # Triton asks for the source of what it compiles; linecache is where Python looks it up
    file = f"<emanest {' '.join(names)}>"
    linecache.cache[file] = (len(text), None, f"{text}\n".splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), scope)
    return inline(scope[names[0]])
