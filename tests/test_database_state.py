# SPDX-License-Identifier: MIT
"""Every optimizer with every lookahead: state dicts, older ones too, copies and pickles."""

import copy
import io
import pickle

import torch

from helpers import content, differing, params_of, set_gradients, values
from optimizer_database import Problem, each_entry, each_lookahead, train

# options of groups that were not always there, in torch or here
LATE_OPTIONS = (
    *("amsgrad", "maximize", "foreach", "fused", "capturable", "differentiable", "nesterov"),
    *("nonfinite", "backend", "base", "split", "ns_form", "ns_dtype", "decoupled_weight_decay"),
)


def trained(entry, lookahead, steps=4, **kwargs):
    problem = Problem()
    optimizer = entry.make(problem.params, lookahead, **kwargs)
    train(problem, optimizer, steps)
    return optimizer


def from_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def twin_of(optimizer, entry, lookahead, state_dict, **kwargs):
    """Another optimizer with the same parameters, which loads a state dict."""
    twin = entry.make([torch.nn.Parameter(v) for v in values(optimizer)], lookahead, **kwargs)
    twin.load_state_dict(state_dict)
    return twin


def go_on(*optimizers):
    for optimizer in optimizers:
        optimizer.train()
        for t in range(4, 8):
            set_gradients(params_of(optimizer), t)
            optimizer.step()


def keys(value):
    """The keys of nested dicts and lists."""
    if isinstance(value, dict):
        return {k: keys(v) for k, v in value.items()}
    return [keys(v) for v in value] if isinstance(value, (list, tuple)) else None


@each_entry
@each_lookahead
def test_a_state_dict_comes_back_from_a_file_as_it_was(entry, lookahead):
    """Every option, both modes: the same keys, bit for bit the same values, the same run."""
    for row in entry.some_inputs(lookahead):
        optimizer = trained(entry, lookahead, 3, **row.kwargs)
        for mode in (optimizer.eval, optimizer.train):
            mode()
            saved = from_file(optimizer.state_dict())
            assert keys(saved) == keys(optimizer.state_dict())
            twin = twin_of(optimizer, entry, lookahead, saved, **row.kwargs)
            assert keys(twin.state_dict()) == keys(saved)
            assert differing(content(twin), content(optimizer)) == []
        go_on(twin)
        go_on(optimizer)
        assert differing(content(twin), content(optimizer)) == []


# options that another optimizer may be made with, and those that stay its own
OTHER = {
    "AdamW": {"lr": 0.5, "eps": 1e-3, "weight_decay": 0.3, "maximize": True, "backend": "eager"},
    "SGD": {"lr": 0.5, "weight_decay": 0.3, "maximize": True, "backend": "eager"},
    "Muon": {"lr": 0.5, "ns_steps": 2, "weight_decay": 0.3, "backend": "eager"},
    "NorMuon": {"lr": 0.5, "beta2": 0.2, "weight_decay": 0.3, "backend": "eager"},
    "Aurora": {"lr": 0.5, "pp_iterations": 1, "pp_beta": 1.0, "backend": "eager"},
    "SOAP": {"lr": 0.5, "precondition_frequency": 1, "weight_decay": 0.3, "backend": "eager"},
    "Wrap AdamW": {"lr": 0.5, "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
    "Wrap SGD": {"lr": 0.5, "weight_decay": 0.3, "maximize": True},
    "Wrap two": {"lr": 0.5, "weight_decay": 0.3, "maximize": True},
}


@each_entry
@each_lookahead
def test_saved_options_replace_all_but_the_back_end(entry, lookahead):
    optimizer = trained(entry, lookahead, lr=0.01)
    other = OTHER[entry.name]
    twin = twin_of(optimizer, entry, lookahead, optimizer.state_dict(), **other)
    paths = {"/param_groups/0/backend"} if "backend" in other else set()
    assert set(differing(content(twin), content(optimizer))) == paths
    assert twin.param_groups[0].get("backend") == other.get("backend")


# ---- older ones ---------------------------------------------------------------------------------


@each_entry
@each_lookahead
def test_options_that_a_state_dict_does_not_know_are_those_of_the_optimizer(entry, lookahead):
    optimizer = trained(entry, lookahead)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for key in LATE_OPTIONS:
            group.pop(key, None)
    twin = twin_of(optimizer, entry, lookahead, saved)
    assert differing(content(twin), content(optimizer)) == []
    go_on(twin, optimizer)
    assert differing(content(twin), content(optimizer)) == []


@each_entry
@each_lookahead
def test_older_pickles_are_given_the_options_that_they_do_not_know(entry, lookahead):
    optimizer = trained(entry, lookahead)
    older = copy.deepcopy(optimizer)
    groups = older.param_groups
    for each in getattr(older, "optimizers", [older]):
        for group in each.param_groups:
            for key in LATE_OPTIONS:
                group.pop(key, None)
        each.defaults = {k: v for k, v in each.defaults.items() if k in groups[0]}
    read = pickle.loads(pickle.dumps(older))
    go_on(read, optimizer)
    mine, theirs = content(read), content(optimizer)
    unknown = {p.rpartition("/")[2] for p in differing(mine, theirs)}
    # torch's SGD makes it False, no longer None
    assert unknown <= ({"fused"} if entry.wraps else set())


KINDS = {
    "int": int,
    "float": float,
    "tensor": lambda value: torch.tensor(float(value)),
    "double": lambda value: torch.tensor(float(value), dtype=torch.float64),
    "integer tensor": lambda value: torch.tensor(int(value)),
}


@each_entry
@each_lookahead
def test_a_saved_step_may_be_a_number_of_any_kind(entry, lookahead):
    optimizer = trained(entry, lookahead)
    before = content(optimizer)
    for kind in KINDS.values():
        saved = optimizer.state_dict()
        saved["state"] = {
            i: {k: kind(v) if k == "step" else v for k, v in entries.items()}
            for i, entries in saved["state"].items()
        }
        twin = twin_of(optimizer, entry, lookahead, saved)
        mine = content(twin)
        # torch keeps a tensor's dtype
        unequal = {path for path in differing(mine, before) if not path.endswith("/step")}
        assert unequal == set()
        steps = [float(e["step"]) for e in twin.state_dict()["state"].values() if "step" in e]
        expected = [float(e["step"]) for e in saved["state"].values() if "step" in e]
        assert steps == expected
        last = twin
    go_on(last, optimizer)
    assert [v.tolist() for v in values(last)] == [v.tolist() for v in values(optimizer)]


# ---- names --------------------------------------------------------------------------------------


@each_entry
@each_lookahead
def test_a_state_dict_may_have_names_or_not(entry, lookahead):
    """As in torch, an optimizer that has none takes those of the state dict."""
    for named in ((True, False), (False, True), (True, True)):
        first, second = Problem(), Problem()
        source, target = (
            entry.make(p.named if names else p.params, lookahead)
            for p, names in zip((first, second), named, strict=True)
        )
        train(first, source, 2)
        with torch.no_grad():
            for p, q in zip(second.params, first.params, strict=True):
                p.copy_(q)
        target.load_state_dict(source.state_dict())
        go_on(source, target)
        unequal = {path.split("/")[3] for path in differing(content(source), content(target))}
        assert unequal == (set() if named[0] else {"param_names"})
        names = [n for group in target.param_groups for n in group["param_names"]]
        assert names == ["weight", "bias"]


# ---- copies -------------------------------------------------------------------------------------


def lost(original, copied):
    return set(dir(original)) - set(dir(copied))


@each_entry
@each_lookahead
def test_copies_have_all_attributes_and_go_on_alike(entry, lookahead):
    optimizer = trained(entry, lookahead)
    torchs = entry.reference(Problem().params)
    for clone in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        copied = clone(optimizer)
        # torch's own lose that they have warned
        assert lost(optimizer, copied) <= lost(torchs, clone(torchs)) | {"_opt_called"}
        assert differing(content(copied), content(optimizer)) == []
        assert set(params_of(copied)).isdisjoint(params_of(optimizer))
    go_on(copied, optimizer)
    assert differing(content(copied), content(optimizer)) == []
