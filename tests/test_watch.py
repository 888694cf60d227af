"""What lets a step skip its survey: every way in which the next step could find something else."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import emanest
from emanest import EMANesterov, Wrap, watch
from emanest.survey import Survey
from helpers import parameters, run, set_gradients

WATCHES = {"python": watch._Watch, "in use": watch.Watch}


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


def test_lists_of_versions_and_gradients():
    params = parameters()
    set_gradients(params[:2], 0)
    params[1].data.add_(1)
    with torch.no_grad():
        params[2].add_(1)
    for versions in (watch.versions, watch._versions):
        assert versions(params) == [p._version for p in params] == [0, 0, 1]
    for gradients in (watch.gradients, watch._gradients):
        found = gradients(params)
        assert found[2] is None
        assert all(g is p.grad for g, p in zip(found, params, strict=True))


@pytest.mark.parametrize("wrapped", [False, True], ids=["fused", "wrapped"])
def test_a_steady_run_surveys_once(wrapped, monkeypatch):
    """After the first step, and once more when a wrapped optimizer has made its state."""
    params = parameters()
    if wrapped:
        optimizer = Wrap(torch.optim.SGD(params, momentum=0.9), EMANesterov())
    else:
        optimizer = emanest.AdamW(params, lookahead=EMANesterov())
    surveys = []
    look = Survey._look
    monkeypatch.setattr(Survey, "_look", lambda *args: surveys.append(1) or look(*args))
    run(optimizer, range(10))
    assert len(surveys) == 1
    params[0].grad = None
    optimizer.step()
    optimizer.step()
    assert len(surveys) == 2
