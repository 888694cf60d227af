# SPDX-License-Identifier: MIT
"""One launch that evaluates a program of ``emanest.backends.program`` on the device, in float64.

The program is known when the kernel is compiled, and unrolled. The numbers that only the host knows
come as arguments, which a CUDA graph keeps, and never lead to another compilation: see ``packed``.

Powers are ``exp(b * log(a))``, for a >= 0. Measured against 40 digits with numpy's exp and log (the
libraries of both kinds of GPU promise the same, 1 unit in the last place): ``1 - decay ** steps``
is within 1e-14 at a decay of 0.999 and within 1.5e-12 at 0.99999, as on the host with Python's
power, since what is lost lies below the last bit of 1; the power by itself is within 1e-13, and
``t ** 3`` within 7e-15 up to t = 10 ** 6. Repeated squaring has twice to 70 times these errors. An
exponent of 0, 1 or 2 gives the nearest number, for the first bias correction and for the weights of
Schedule-Free.
"""

import functools
import struct

import torch
import triton
import triton.language as tl

from .calls import call
from .rounding import compiled, inline

# one thread does it all; without contraction operations round as the host's
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
# of each integer that ``packed`` makes
_TAG = 2**62 | 1


@inline
def _power(a, b):
    zero = a == 0.0
    # numpy, which computes in the interpreter, would warn of the logarithm of 0
    value = tl.exp(b * tl.log(tl.where(zero, 1.0, a)))
    value = tl.where(zero, tl.where(b < 0.0, float("inf"), 0.0), value)
    value = tl.where(b == 2.0, a * a, value)
    value = tl.where(b == 1.0, a, value)
    return tl.where(b == 0.0, 1.0, value)


@inline
def _host(halves, k: tl.constexpr):
    low = (halves[2 * k] >> 1) & 0xFFFFFFFF
    return (low | (halves[2 * k + 1] >> 1 << 32)).to(tl.float64, bitcast=True)


# operation -> what it is in Triton, of the values v0, v1, ... of those before
TEXTS = {
    "load": "tl.load(pointers[{a}]).to(tl.float64)",
    "host": "_host(halves, {a})",
    "literal": "tl.full((), {a}, tl.float64)",
    "**": "_power(v{a}, v{b})",
    **dict.fromkeys("+-*/", "v{a} {name} v{b}"),
    **dict.fromkeys(("<", "<=", "==", "!="), "(v{a} {name} v{b}).to(tl.float64)"),
}


@triton.jit
def plan_kernel(
    pointers, halves, out, skip,
    VALUES: tl.constexpr, NUMBERS: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Evaluate a program; ``out`` receives its numbers, then what the inputs of AFTER held.

    Args:
        pointers: of the inputs on the device; those of AFTER receive their next values.
        halves: numbers of the host, as ``packed`` makes them.
        out: a vector of float64.
        skip: a flag; nothing but ``out`` is written unless it is 0. Or None.
        VALUES, NUMBERS, AFTER: from ``compiled_for``.
    """
    values = VALUES(pointers, halves)
    for k in tl.static_range(len(NUMBERS)):
        tl.store(out + k, values[NUMBERS[k]])
    for k in tl.static_range(len(AFTER)):
        tl.store(out + len(NUMBERS) + k, values[AFTER[k][1]])
    happens = tl.full((), 1, tl.int1) if skip is None else tl.load(skip) == 0
    for k in tl.static_range(len(AFTER)):
        pointer = pointers[AFTER[k][0]]
        tl.store(pointer, values[AFTER[k][2]].to(pointer.dtype.element_ty), mask=happens)


def plan_(program, inputs, constants, out, skip=None):
    """As ``eager.plan_``."""
    on_device = tuple(isinstance(value, torch.Tensor) for value in inputs)
    pointers = tuple(value for value in inputs if isinstance(value, torch.Tensor))
    numbers = [value for value in inputs if not isinstance(value, torch.Tensor)]
    arguments = pointers, packed([*numbers, *constants]), out, skip
    call(plan_kernel, 1, out.device, arguments, compiled_for(program, on_device), OPTIONS)


def packed(numbers):
    """Numbers of the host as arguments of the kernel: float64 in two integers each.

    A float would be rounded to float32. Of an integer Triton compiles in whether it is 1, whether
    16 divides it, and how wide it is (``do_not_specialize`` does not reach into tuples): so each
    half of the bits is followed by a set bit, and another one makes it 64 bits wide.
    """
    # a tuple should not be empty
    numbers = numbers or (0.0,)
    halves = struct.unpack(f"<{2 * len(numbers)}I", struct.pack(f"<{len(numbers)}d", *numbers))
    return tuple([half << 1 | _TAG for half in halves])


@functools.lru_cache(maxsize=256)
def compiled_for(program, on_device):
    """What the kernel is compiled for.

    Args:
        program: a program.
        on_device: for each of its inputs, whether it is on the device; the host has the others.
    """
    # of each input how many of its kind come before it
    places = [on_device[:i].count(there) for i, there in enumerate(on_device)]
    hosts = len(on_device) - sum(on_device)

    def source(name, a, b):
        if name == "input":
            return "load" if on_device[a] else "host", places[a], 0
        if name == "constant":
            return "host", hosts + a, 0
        return name, a, b

    operations = [source(*operation) for operation in program.operations]
    lines = [
        f"v{k} = {TEXTS[n].format(name=n, a=a, b=b)}" for k, (n, a, b) in enumerate(operations)
    ]
    values = "".join(f"v{k}, " for k in range(len(lines)))
    text = "\n    ".join(["def values(pointers, halves):", *lines, f"return ({values})"])
    after = [(places[i], operations.index(("load", places[i], 0)), new) for i, new in program.after]
    return {
        "VALUES": compiled(text, ("values", str(hash(text))), {**globals()}),
        "NUMBERS": program.numbers,
        "AFTER": tuple(after),
    }
