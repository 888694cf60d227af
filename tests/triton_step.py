"""Rules inside a Triton kernel, as a script: ``interpret`` runs every one, ``compile`` compiles.

Triton decides when it is imported whether it interprets, so ``test_triton_rules`` starts this file
with TRITON_INTERPRET set. It writes JSON.
"""

import json
import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emanest import eager
from emanest.rules import BASES, LOOKAHEADS, POINTS
from test_rules import columns, numbers, tensors

# sm_90, for which no GPU is needed to compile
TARGET = GPUTarget("cuda", 90, 32)
# which of the tensors of test_rules: 1023 elements, so that the block's last is masked
TENSOR, BLOCK = 3, 1024


@triton.jit
def load(ptrs, i, mask):
    values = ()
    for k in tl.static_range(len(ptrs)):
        values = values + (tl.load(ptrs[k] + i, mask=mask),)  # noqa: RUF005
    return values


@triton.jit
def store(ptrs, values, i, mask):
    for k in tl.static_range(len(ptrs)):
        tl.store(ptrs[k] + i, values[k], mask=mask)


@triton.jit
def step_kernel(
    y_ptr,
    g_ptr,
    base_ptrs,
    look_ptrs,
    base_numbers,
    look_numbers,
    n,
    BASE: tl.constexpr,
    LOOK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    mask = i < n
    y = tl.load(y_ptr + i, mask=mask)
    g = tl.load(g_ptr + i, mask=mask)
    u, base_state = BASE(y, g, load(base_ptrs, i, mask), base_numbers)
    y, look_state = LOOK(y + u, u, load(look_ptrs, i, mask), look_numbers)
    tl.store(y_ptr + i, y, mask=mask)
    store(base_ptrs, base_state, i, mask)
    store(look_ptrs, look_state, i, mask)


@triton.jit
def move_kernel(y_ptr, ptrs, numbers, n, POINT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    mask = i < n
    y = POINT(tl.load(y_ptr + i, mask=mask), load(ptrs, i, mask), numbers)
    tl.store(y_ptr + i, y, mask=mask)


# ---- run ----------------------------------------------------------------------------------------


def error(found, expected):
    """The largest difference, relative to values near 1."""
    pairs = zip(found, expected, strict=True)
    # over one tensor: Python's max would pass over a NaN
    return torch.cat([(a - b).abs() / (1 + b.abs()) for a, b in pairs]).max().item()


def state(rule, seed):
    return tuple(column[TENSOR] for column in columns(rule.state, seed, torch.float32))


def step_error(base, look):
    """How far a step in the kernel is from the eager back end's."""
    runs = []
    given = numbers(BASES[base]), numbers(LOOKAHEADS[look])
    for eagerly in (False, True):
        y, g = (tensors(seed, torch.float32)[TENSOR] for seed in (1, 2))
        base_state, look_state = state(BASES[base], 10), state(LOOKAHEADS[look], 20)
        if eagerly:
            columns = [[t] for t in base_state], [[t] for t in look_state]
            eager.step_(base, look, [y], [g], *columns, (1.0, *given[0], *given[1]), y.dtype)
        else:
            rules = {"BASE": BASES[base].function, "LOOK": LOOKAHEADS[look].function}
            step_kernel[(1,)](y, g, base_state, look_state, *given, len(y), **rules, BLOCK=BLOCK)
        runs.append([y, *base_state, *look_state])
    return error(*runs)


def move_error(point):
    """How far a move in the kernel is from the eager back end's."""
    y, moved = (tensors(1, torch.float32)[TENSOR] for _ in range(2))
    tensors_, given = state(POINTS[point], 20), numbers(POINTS[point])
    eager.move_(point, [moved], [[t] for t in tensors_], given, y.dtype)
    move_kernel[(1,)](y, tensors_, given, len(y), POINT=POINTS[point].function, BLOCK=BLOCK)
    return error([y], [moved])


def interpret():
    # the compiler has it, the interpreter has only the function
    tl.tensor.sqrt = lambda x: tl.sqrt(x)
    pairs = {f"{base} {look}": step_error(base, look) for base in BASES for look in LOOKAHEADS}
    return {**pairs, **{point: move_error(point) for point in POINTS}}


# ---- compile ------------------------------------------------------------------------------------


def compiled(kernel, **arguments):
    """Triton's first form of a compiled kernel, or what went wrong."""
    types = {k: v for k, v in arguments.items() if isinstance(v, (str, tuple))}
    constants = {k: v for k, v in arguments.items() if k not in types} | {"BLOCK": BLOCK}
    signature = types | dict.fromkeys(constants, "constexpr")
    try:
        return triton.compile(ASTSource(kernel, signature, constants), TARGET).asm["ttir"]
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"


def compiled_step(base, look):
    return compiled(
        step_kernel,
        y_ptr="*fp32",
        g_ptr="*fp32",
        base_ptrs=("*fp32",) * len(BASES[base].state),
        look_ptrs=("*fp32",) * len(LOOKAHEADS[look].state),
        base_numbers=("fp32",) * len(BASES[base].numbers),
        look_numbers=("fp32",) * len(LOOKAHEADS[look].numbers),
        n="i32",
        BASE=triton.jit(BASES[base].function),
        LOOK=triton.jit(LOOKAHEADS[look].function),
    )


def compiled_move(point):
    return compiled(
        move_kernel,
        y_ptr="*fp32",
        ptrs=("*fp32",),
        numbers=("fp32",),
        n="i32",
        POINT=triton.jit(POINTS[point].function),
    )


def compile():
    return {
        **{look: compiled_step("adamw", look) for look in LOOKAHEADS},
        **{base: compiled_step(base, "none") for base in BASES},
        **{point: compiled_move(point) for point in POINTS},
    }


if __name__ == "__main__":
    json.dump({"interpret": interpret, "compile": compile}[sys.argv[1]](), sys.stdout)
