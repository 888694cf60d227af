# SPDX-License-Identifier: MIT
"""What lets a step not look at every parameter: all ways in which the next could find another."""

from array import array

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import emanest
from emanest import EMANesterov, Wrap
from emanest.backends import guards
from emanest.backends.storage import in_storage
from emanest.step.select import Selection
from helpers import parameters, run, set_gradients

WATCHES = {"python": guards._Guard, "in use": guards.Guard}


class Scene:
    """Parameters in two lists, two mappings with their state, and what of it must stay."""

    def __init__(self):
        params = parameters()
        set_gradients(params, 0)
        self.lists = [params[:2], params[2:]]
        self.rows = [{"a": torch.ones(1), "step": 0} for _ in params]
        self.mappings = [
            dict(zip(params[:2], self.rows[:2], strict=True)),
            {params[2]: self.rows[2]},
        ]
        self.entries = [(row, {"a": row["a"]}) for row in self.rows]


def replace_gradient(s):
    s.lists[0][0].grad = torch.ones(3, 5)


def other_value(s):
    s.rows[0]["step"] = 1


def drop_gradient(s):
    s.lists[0][1].grad = None


def sparse_gradient(s):
    s.lists[0][1].grad = torch.ones(7).to_sparse()


def other_parameter(s):
    s.lists[1][0] = parameters()[2]
    set_gradients(s.lists[1], 0)


def fewer_parameters(s):
    s.lists[1].clear()


def more_parameters(s):
    s.lists[1].append(s.lists[0][0])


def other_order(s):
    s.lists[0].reverse()


def other_shape(s):
    s.lists[0][1].grad = None
    s.lists[0][1].data = torch.ones(8)


def other_dtype(s):
    for p in s.lists[0]:
        p.grad = None
    s.lists[0][0].data = torch.ones(3, 5, dtype=torch.float64)


def other_mapping(s):
    s.mappings[1] = dict(s.mappings[1])


def other_row(s):
    s.mappings[1][s.lists[1][0]] = dict(s.rows[2])


def row_removed(s):
    s.mappings[0].clear()


def tensor_replaced(s):
    s.rows[1]["a"] = torch.ones(1)


def tensor_removed(s):
    del s.rows[1]["a"]


def tensor_added(s):
    s.rows[1]["b"] = torch.ones(1)


def wrapped_gradient(s):
    s.lists[0][1].grad = TwoTensor(torch.ones(7), torch.ones(7))


def freed_gradient(s):
    s.lists[0][1].grad.untyped_storage().resize_(0)


def wrapped_parameter(s):
    p = s.lists[0][1]
    p.grad = None
    torch.utils.swap_tensors(p, torch.nn.Parameter(TwoTensor(torch.ones(7), torch.ones(7))))
    p.grad = TwoTensor(torch.ones(7), torch.ones(7))


def freed_parameter(s):
    s.lists[0][1].untyped_storage().resize_(0)


HARMLESS = [lambda s: None, replace_gradient, other_value]
CHANGES = [
    *(drop_gradient, sparse_gradient, other_parameter, fewer_parameters, more_parameters),
    *(other_order, other_shape, other_dtype, other_mapping, other_row, row_removed),
    *(tensor_replaced, tensor_removed, tensor_added, wrapped_gradient, freed_gradient),
    *(wrapped_parameter, freed_parameter),
]


@pytest.mark.parametrize("kind", WATCHES)
@pytest.mark.parametrize("change", [*HARMLESS, *CHANGES], ids=lambda f: f.__name__)
def test_every_change_is_noticed(kind, change):
    scene = Scene()
    guard = WATCHES[kind](scene.lists, scene.mappings, scene.entries)
    change(scene)
    # not in the assert, which would print tensors that have no memory
    found = guard.unchanged(scene.lists, scene.mappings)
    assert found == (change in HARMLESS)


class Columns:
    """Three columns of a call."""

    def __init__(self):
        self.lists = [[torch.ones(4, 6), torch.ones(3), torch.ones(2, 2).t()] for _ in range(3)]


def put(tensor, column=1, i=0):
    """A change of columns: what a tensor is replaced by, made of it."""

    def change(columns):
        columns[column][i] = tensor(columns[column][i])

    return change


def freed(t):
    t.untyped_storage().resize_(0)
    return t


# change -> whether the tensors lie as before; None: elsewhere
LAYOUTS = {
    "nothing": (lambda columns: None, True),
    "values": (lambda columns: columns[1][0].zero_(), True),
    "another tensor of this memory": (put(torch.Tensor.detach), True),
    "as many elements": (put(lambda t: t.view(6, 4)), True),
    "a list of its own": (lambda columns: columns.insert(1, list(columns.pop(1))), True),
    "address": (put(torch.clone), None),
    "address of the last": (put(torch.clone, 2, 2), None),
    "data": (lambda columns: columns[0][0].set_(torch.zeros(4, 6)), None),
    "dtype": (put(lambda t: t.view(torch.int32)), False),
    "strides": (put(lambda t: t.as_strided((4, 6), (1, 4))), False),
    "strides of one that has others": (put(lambda t: t.t(), 1, 2), False),
    "shape of one that has others": (put(lambda t: t.as_strided((4,), (1,)), 1, 2), False),
    "fewer elements": (put(lambda t: t[:3]), False),
    "negation": (put(torch._neg_view), False),
    "order": (lambda columns: columns[1].reverse(), False),
    "a tensor less": (lambda columns: columns[1].pop(), False),
    "a tensor more": (lambda columns: columns[1].append(torch.ones(1)), False),
    "a tensor in the next column": (lambda columns: columns[2].insert(0, columns[1].pop()), False),
    "a column less": (lambda columns: columns.pop(), False),
    "a column more": (lambda columns: columns.append([]), False),
    "class": (put(lambda t: TwoTensor(t, t)), False),
    "sparse": (put(torch.Tensor.to_sparse), False),
    "freed": (put(freed), False),
    "meta": (put(lambda t: t.to("meta")), False),
}


def addresses(columns):
    """Those that a layout finds, of tensors in their storage."""
    every = [t for column in columns for t in column]
    return (
        array("q", [t.data_ptr() for t in every]).tobytes() if all(map(in_storage, every)) else None
    )


@pytest.mark.parametrize("change", LAYOUTS)
@pytest.mark.skipif(guards.Layout is None, reason="the extension is not built")
def test_every_change_of_memory_is_noticed(change):
    columns, (apply, same) = Columns().lists, LAYOUTS[change]
    layout = guards.Layout(columns)
    before = layout.find(columns)
    assert before == addresses(columns)
    apply(columns)
    found = layout.find(columns)
    assert (found is not None) == (same is not False)
    assert (found is before) == (same is True)
    assert found in (None, addresses(columns))
    # what is in no storage lies nowhere, and not where it was
    again = guards.Layout(columns).find(columns)
    assert (again is not None) == (change not in ("class", "sparse", "freed", "meta"))


@pytest.mark.skipif(guards.Layout is None, reason="the extension is not built")
def test_memory_that_was_shared_since_is_that_of_another():
    """A copy that is made when one of them is written must not be written itself."""
    columns = Columns().lists
    layout = guards.Layout(columns)
    before = layout.find(columns)
    copy = torch._lazy_clone(columns[1][0])
    assert layout.find(columns) != before
    assert copy.data_ptr() != columns[1][0].data_ptr()


def test_writes_are_counted():
    tensors = [torch.ones(1), torch.ones(2)[1:]]
    for count in (guards.count_writes, guards.increment_version):
        before = guards.versions(tensors)
        count(tensors)
        assert guards.versions(tensors) == [version + 1 for version in before]


def test_lists_of_versions_and_gradients():
    params = parameters()
    set_gradients(params[:2], 0)
    params[1].data.add_(1)
    with torch.no_grad():
        params[2].add_(1)
    for versions in (guards.versions, guards._versions):
        assert versions(params) == [p._version for p in params] == [0, 0, 1]
    for gradients in (guards.gradients, guards._gradients):
        found = gradients(params)
        assert found[2] is None
        assert all(g is p.grad for g, p in zip(found, params, strict=True))


@pytest.mark.parametrize("wrapped", [False, True], ids=["fused", "wrapped"])
def test_a_steady_run_looks_once(wrapped, monkeypatch):
    """After the first step, and once more when a wrapped optimizer has made its state."""
    params = parameters()
    if wrapped:
        optimizer = Wrap(torch.optim.SGD(params, momentum=0.9), EMANesterov())
    else:
        optimizer = emanest.AdamW(params, lookahead=EMANesterov())
    looks = []
    look = Selection._look
    monkeypatch.setattr(Selection, "_look", lambda *args: looks.append(1) or look(*args))
    run(optimizer, range(10))
    assert len(looks) == 1
    params[0].grad = None
    optimizer.step()
    optimizer.step()
    assert len(looks) == 2
