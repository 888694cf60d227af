# SPDX-License-Identifier: MIT
"""CUDA graphs on the CPU: launches of Triton and torch's operators are recorded, and replayed.

As on a GPU nothing is done during the capture, but that memory is allocated; values cannot be read;
and what work reads has to be the device's memory: that which was there, or was made by work.
"""

import contextlib
import gc
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emanest.backends import capture
from emanest.backends.storage import in_storage

# torch 2.11's
NOT_PINNED = (
    "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is "
    "pinned"
)
# a stand-in on the CPU is asked too
capture.DEVICE_TYPES.add("cpu")
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Graph(TorchDispatchMode):
    """A graph; what runs in a ``with`` block of it is captured.

    Args:
        readable: tensors whose values are looked at where they are on the CPU, learning rates say;
            None: all of them.

    Attributes:
        names: of the kernels and operators that a replay runs, in order.
    """

    recording = False  # one of them

    def __init__(self, readable=()):
        super().__init__()
        self.names, self._nodes, self._given = [], [], []
        self._readable = None if readable is None else {t.data_ptr() for t in readable}

    def __enter__(self):
        # held, so that memory of the host cannot come to lie where one of them was
        # a proxy of what is gone would raise where its class is asked for
        every = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
        self._held = [t.untyped_storage() for t in every if in_storage(t)]
        self._there = {storage.data_ptr() for storage in self._held}
        self._before = capture.capturing, self._interpreted()
        capture.capturing, Graph.recording = lambda device_type: True, True
        for each in self._interpreted():
            each.run = self._launched
        return super().__enter__()

    def __exit__(self, *error):
        capture.capturing, interpreted = self._before
        Graph.recording = False
        for each, run in interpreted.items():
            each.run = run
        return super().__exit__(*error)

    @staticmethod
    def _interpreted():
        """The class of kernels, and how they are run, where Triton was imported to interpret."""
        module = sys.modules.get("triton.runtime.interpreter")
        return {module.InterpretedFunction: module.InterpretedFunction.run} if module else {}

    def replay(self):
        """Do what was captured; torch, which does not see it, counts no versions."""
        unseen = torch.autograd._unsafe_preserve_version_counter(tuple(self._given))
        with torch.no_grad(), unseen:
            for node in self._nodes:
                node()

    def _record(self, name, work, given):
        for t in tensors(given):
            if t.numel() and t.untyped_storage().data_ptr() not in self._there:
                raise RuntimeError(f"{NOT_PINNED} ({name})")
        self.names.append(name)
        self._nodes.append(work)
        self._given += tensors(given)

    @property
    def _launched(self):
        (run,) = self._before[1].values()

        def launched(kernel, *args, **kwargs):
            self._record(kernel.fn.__name__, lambda: run(kernel, *args, **kwargs), (args, kwargs))

        return launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, schema = kwargs or {}, func._schema
        read = func in READS and self._readable is not None
        if read and args[0].data_ptr() not in self._readable:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if schema.is_mutable and tensors((args, kwargs)):
            self._record(schema.name, lambda: func(*args, **kwargs), (args, kwargs))
            return kwargs.get("out", args[0]) if schema.returns else None
        made = func(*args, **kwargs)
        # views, and what has no tensor to show
        if any(each.alias_info is not None for each in schema.returns) or not tensors(made):
            return made
        self._held += [t.untyped_storage() for t in tensors(made)]
        self._there |= {t.untyped_storage().data_ptr() for t in tensors(made)}

        def again():
            for old, new in zip(tensors(made), tensors(func(*args, **kwargs)), strict=True):
                old.copy_(new)

        if "empty" not in schema.name:
            self._record(schema.name, again, (args, kwargs))
        return made


class CUDAGraph:
    """As ``torch.cuda.CUDAGraph``."""

    def replay(self):
        """Do what was captured."""
        self.recorded.replay()

    def reset(self):
        """Forget it."""
        del self.recorded


@contextlib.contextmanager
def graph(cuda_graph, pool=None, stream=None, capture_error_mode="global"):
    """Record what is done here, as ``torch.cuda.graph``."""
    cuda_graph.recorded = Graph(readable=None)
    with cuda_graph.recorded:
        yield
