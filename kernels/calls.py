# SPDX-License-Identifier: MIT
"""Calls of kernels: the first goes through Triton's JIT, later ones straight to what it compiled.

At each call the JIT binds the arguments by name, finds out what it specialises on and looks up the
compiled kernel, which takes the host several times as long as the launch. All of that is decided by
a few facts: the kernel, the device, the constants, the options and, of each argument, what Triton's
own ``native_specialize_impl`` says of it (a type, whether 16 divides an address or an integer,
whether an integer is 1). They are the key of a ``Call``, which keeps the compiled kernel.

This relies on how the JIT itself launches, which is read from its text: see ``DIRECT``. Where that
is another way, in the interpreter, and while somebody watches launches (profilers) or compiles for
debugging, every call is the JIT's.
"""

import contextlib
import functools
import inspect

import torch
import triton
from triton.compiler import CompiledKernel, make_backend
from triton.runtime import driver

from .rounding import INTERPRETED

# Calls that are kept, and the least recently used is dropped: far more than a model has
MOST = 4096

# how Triton 3.6 to 3.8 launch, with the launchers of both kinds of GPU
_LAUNCH = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, "
    "launch_metadata, knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, "
    "*bound_args.values())"
)


def _launches_so():
    """Whether the installed Triton launches as ``_LAUNCH`` says and tells what it specialises."""
    run = getattr(triton.runtime.jit.JITFunction, "run", None)
    try:
        text = " ".join(inspect.getsource(run).split())
    except (OSError, TypeError):
        return False
    return _LAUNCH in text and _SPECIALIZE is not None


_SPECIALIZE = getattr(triton.runtime.jit, "native_specialize_impl", None)
DIRECT = not INTERPRETED and _launches_so()


def current(device):
    """A context in which Triton, which launches on the current device, launches on this one."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def watched(kernel):
    """Whether the JIT does more at a call of a kernel than to launch, or might compile anew."""
    runtime = triton.knobs.runtime
    # a chain of hooks that may be empty; a hook in its place counts as one
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or triton.knobs.compilation.instrumentation_mode
        or kernel.pre_run_hooks
    )


class Call:
    """A kernel with everything but the arguments that change from call to call.

    Args:
        kernel: a function of Triton's.
        device: where it runs.
        rest: the last of its arguments, of which none is a tensor.
        constants, options: as the JIT takes them, by name.
    """

    def __init__(self, kernel, device, rest, constants, options):
        self.kernel, self.device, self.rest = kernel, device, rest
        self.named = {**constants, **options}
        self.direct = None  # the launcher, what is launched, and the last of what it is given

    def __call__(self, programs, *arguments):
        """Launch the kernel.

        Args:
            programs: how many, at least 1.
            arguments: the first ones, tensors among them; at every call of the same specialisation.
        """
        if self.direct is None or watched(self.kernel):
            self._through_the_jit(programs, arguments)
            return
        active, own = driver.active, self.device.index
        device = active.get_current_device()
        if own != device and own is not None:
            with current(self.device):
                self(programs, *arguments)
            return
        run, function, metadata, tail = self.direct
        # an address is taken as it is; of a tensor the driver would ask where it lies
        given = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        stream = active.get_current_stream(device)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *given, *tail)

    def _through_the_jit(self, programs, arguments):
        with current(self.device):
            found = self.kernel[(programs,)](*arguments, *self.rest, **self.named)
        # nothing, or a promise, where others have taken compilation over
        if DIRECT and isinstance(found, CompiledKernel) and not watched(self.kernel):
            # a launcher is given constants as well, where the kernel has them
            constants = [self.named[n] for n in self.kernel.arg_names if n in self.named]
            self.direct = found.run, found.function, found.packed_metadata, (*self.rest, *constants)


@functools.cache
def _backend(device):
    """Triton's for a device."""
    with current(device):
        return make_backend(driver.active.get_current_target())


def specialised(device, argument):
    """What Triton compiles in of an argument, hashable."""
    return _SPECIALIZE(_backend(device), argument, False, True, True)


def call(kernel, programs, device, arguments, constants, options):
    """Launch a kernel.

    Args:
        kernel, device, constants, options: as in ``Call``.
        programs: how many, at least 1.
        arguments: tensors, numbers, None, and tuples of them.
    """
    kinds = tuple([specialised(device, a) for a in arguments]) if DIRECT else None
    _found(kernel, device, kinds, tuple(constants.items()), tuple(options.items()))(
        programs, *arguments
    )


@functools.lru_cache(maxsize=MOST)
def _found(kernel, device, kinds, constants, options):
    return Call(kernel, device, (), dict(constants), dict(options))
