# SPDX-License-Identifier: MIT
"""Whether a tensor's values are in its storage, at ``data_ptr()``, where kernels read and write.

They are not in a tensor whose class has a ``__torch_dispatch__``: a wrapper around other tensors
(``torch.utils._python_dispatch``), a fake tensor, a ``DTensor``. Its ``data_ptr()`` is 0, or what
lies there is for its class to read. A storage may also hold nothing: on the meta device, or freed.
"""

import contextlib
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensor

# what to do about a tensor of a class
_FIXES = {
    "FakeTensor": "a fake tensor holds no values, and cannot be stepped, evaluated or loaded",
    "AsyncCollectiveTensor": "wait() for it first",
    "DTensor": "take its full_tensor()",
}
_FIX = (
    "take the plain tensors inside it (an optimizer of torch's leaves every operation to the class)"
)


class NotInStorage(TypeError):
    """A tensor's values are not in its storage."""


def in_storage(tensor):
    """Whether a strided tensor's values are in its storage."""
    if dispatches(tensor):
        return False
    try:
        # of a storage that holds nothing the offset is left
        offset = tensor.storage_offset() * tensor.itemsize
        return tensor.numel() == 0 or tensor.data_ptr() != offset
    except RuntimeError:
        # a wrapper of torch.func, which has no storage
        return False


def dispatches(tensor):
    """Whether a tensor's class has a ``__torch_dispatch__``."""
    return torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)


def is_fake(tensor):
    """Whether a tensor has a shape and no values (``FakeTensorMode``)."""
    return isinstance(tensor, FakeTensor)


def made_fake():
    """Whether tensors that are made now are fake: inside a ``FakeTensorMode``."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def like(tensor):
    """Where tensors are made to stand beside one: a context, in which beside fake ones all are."""
    return tensor.fake_mode if is_fake(tensor) else contextlib.nullcontext()


def waited(tensor):
    """A tensor that a functional collective may still be writing once it is there; others as is."""
    # whoever has one has imported it
    module = sys.modules.get("torch.distributed._functional_collectives")
    if module is not None and isinstance(tensor, module.AsyncCollectiveTensor):
        return tensor.trigger_wait()
    return tensor


def check_class(name, tensor):
    """Raise NotInStorage for a tensor whose class says what it holds; fake ones will be seen to."""
    if dispatches(tensor) and not is_fake(tensor):
        refuse(name, tensor)


def check(name, tensor):
    """Raise NotInStorage, or RuntimeError on the meta device, if a tensor is not ``in_storage``."""
    if not in_storage(tensor):
        refuse(name, tensor)


def refuse(name, tensor):
    """Raise what ``check`` raises for a tensor that is not in its storage."""
    if dispatches(tensor):
        kind = type(tensor).__name__
        raise NotInStorage(
            f"{name} is of class {kind}, whose values are not in memory of its own: "
            f"{_FIXES.get(kind, _FIX)}"
        )
    if tensor.is_meta:
        raise RuntimeError(
            f"{name} is on the meta device: materialise the model before the first step"
        )
    raise NotInStorage(
        f"{name} has no memory for its {tensor.numel()} values: its storage was freed "
        "(resize_(0)), or its .data replaced by a tensor that has none"
    )
