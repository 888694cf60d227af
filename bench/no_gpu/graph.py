"""A CUDA graph without CUDA: it records the operators of torch, and repeats them."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves


class Recorder(TorchDispatchMode):
    """Runs operators, notes them down, and keeps what they overwrite."""

    def __init__(self):
        super().__init__()
        self.operations, self.overwritten = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        writes = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tree_iter(given.get(argument.name))
            if isinstance(tensor, torch.Tensor)
        ]
        self.overwritten += [(tensor, tensor.clone()) for tensor in writes]
        out = func(*args, **kwargs)
        # a view is the same memory at every replay
        if writes or not any(r.alias_info for r in func._schema.returns):
            self.operations.append((func, args, kwargs, out))
        return out


class CUDAGraph:
    """As ``torch.cuda.CUDAGraph``."""

    capturing = False

    def __init__(self):
        self.operations = []

    def replay(self):
        """Run every operator again, on the same memory."""
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                pairs = zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True)
                for old, new in pairs:
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)

    def reset(self):
        self.operations = []


@contextlib.contextmanager
def graph(cuda_graph, pool=None, stream=None, capture_error_mode="global"):
    """Record what is done here without doing it, as ``torch.cuda.graph``."""
    recorder, CUDAGraph.capturing = Recorder(), True
    try:
        with recorder:
            yield
    finally:
        CUDAGraph.capturing = False
        with torch.no_grad():
            for tensor, before in reversed(recorder.overwritten):
                tensor.copy_(before)
    cuda_graph.operations = recorder.operations
