# SPDX-License-Identifier: MIT
"""Rows 54 to 63 of the table of bad inputs: checkpoints."""

import copy
import functools
import io
import operator
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import emanest
from bad_input import (
    ELEMENTWISE,
    MATRICES,
    OURS,
    Row,
    assert_same,
    goes_on,
    make,
    matrices,
    not_loaded,
    ready,
    refused,
)
from helpers import LR, bits, params_of, run, ulp, values

GROUP = ("param_groups", 0)
PACKAGE = Path(emanest.__file__).parent


def put(*path, to):
    """Replace an entry of a state dict."""

    def corrupt(saved):
        saved = copy.deepcopy(saved)
        *parents, last = path
        functools.reduce(operator.getitem, parents, saved)[last] = to
        return saved

    return corrupt


def drop(*path):
    def corrupt(saved):
        saved = copy.deepcopy(saved)
        *parents, last = path
        del functools.reduce(operator.getitem, parents, saved)[last]
        return saved

    return corrupt


def one_group_more(saved):
    return {**saved, "param_groups": [*saved["param_groups"], {**saved["param_groups"][0]}]}


def first_state(change):
    """Replace the first tensor with values in the state of parameter 1."""

    def corrupt(saved):
        saved = copy.deepcopy(saved)
        entries = saved["state"][1]
        key = next(k for k, v in entries.items() if isinstance(v, torch.Tensor) and v.dim())
        entries[key] = change(entries[key])
        return saved

    return corrupt


def names(count):
    return put("param_groups", 1, "param_names", to=["weight"] * count)


def steps(value):
    """The number of steps of parameter 1, whatever its key."""

    def corrupt(saved):
        saved = copy.deepcopy(saved)
        entries = saved["state"][1]
        key = "step" if "lookahead_step" not in entries else "lookahead_step"
        entries[key] = torch.tensor(value)
        return saved

    return corrupt


NOT_ONE = "not an optimizer state dict"

# row, what is wrong -> how it comes about, error, message; whatever the optimizer
CORRUPT = [
    (54, "None", lambda saved: None, TypeError, "state_dict must be a dict, got NoneType"),
    (54, "a list", lambda saved: [saved], TypeError, "state_dict must be a dict, got list"),
    (54, "a path", lambda saved: "optimizer.pt", TypeError, "state_dict must be a dict, got str"),
    (54, "empty", lambda saved: {}, ValueError, f"{NOT_ONE}: missing 'param_groups'"),
    (54, "no state", drop("state"), ValueError, f"{NOT_ONE}: missing 'state'"),
    (54, "no groups", drop("param_groups"), ValueError, f"{NOT_ONE}: missing 'param_groups'"),
    (54, "groups None", put("param_groups", to=None), TypeError, "param_groups must be a list"),
    (54, "groups junk", put(*GROUP, to=5), TypeError, "group 0 of the state dict must be a dict"),
    (54, "no params", drop(*GROUP, "params"), TypeError, "a dict with a list of params"),
    (54, "params None", put(*GROUP, "params", to=None), TypeError, "a dict with a list of params"),
    (54, "state None", put("state", to=None), TypeError, "state a dict"),
    (54, "state a list", put("state", to=[{}, {}, {}]), TypeError, "state a dict"),
    (54, "entries junk", put("state", 1, to=5), TypeError, "state of parameter 0 of group 1"),
    (55, "a group more", one_group_more, ValueError, "number of parameter groups: 3, .* has 2"),
    (55, "no group", put("param_groups", to=[]), ValueError, "groups: 0, the optimizer has 2"),
    (
        55,
        "a parameter fewer",
        drop("param_groups", 1, "params", 1),
        ValueError,
        r"doesn't match the size .*: sizes \[1, 1\], the optimizer's are \[1, 2\]",
    ),
    (57, "negative lr", put(*GROUP, "lr", to=-1.0), ValueError, "Invalid learning rate: -1"),
    (57, "lr a string", put(*GROUP, "lr", to="fast"), TypeError, "lr must be .*got 'fast'"),
    (
        57,
        "unknown method",
        put(*GROUP, "lookahead", to="lookahed"),
        ValueError,
        "lookahead must be one of .*'lookahed'",
    ),
    (57, "method a number", put(*GROUP, "lookahead", to=3), ValueError, "lookahead must be one of"),
    (57, "t a string", put(*GROUP, "lookahead_t", to="soon"), TypeError, "lookahead_t"),
    (57, "t negative", put(*GROUP, "lookahead_t", to=-1), ValueError, "lookahead_t"),
    (57, "mode a number", put(*GROUP, "train_mode", to=3), TypeError, "train_mode"),
    (56, "no names", put(*GROUP, "param_names", to=3), TypeError, "param_names of group 0 of the"),
    (56, "too few names", names(1), ValueError, "group 1 of the checkpoint has 1 names for 2"),
    (
        57,
        "a parameter twice",
        put("param_groups", 1, "params", to=[1, 1]),
        ValueError,
        "twice: it is number 1",
    ),
    (57, "method a list", put(*GROUP, "lookahead", to=["nag"]), ValueError, "lookahead must be"),
    (63, "newer", put(*GROUP, "lookahead_version", to=2), ValueError, "format 2 .*up to 1.*update"),
    (57, "steps negative", steps(-5.0), ValueError, "step' of parameter 0 of group 1 must be"),
    (57, "steps NaN", steps(float("nan")), ValueError, "step' of parameter 0 of group 1 must be"),
    (63, "no format", put(*GROUP, "lookahead_version", to="x"), ValueError, "has format 'x'"),
]

# row, what -> change of the first state, error, message; what the inner optimizer keeps is its own
STATE = [
    (57, "another shape", lambda t: torch.zeros(3, 3), ValueError, SHAPE := "of parameter 0 of .*"),
    (57, "a row too many", lambda t: torch.cat([t, t[:1]]), ValueError, f"{SHAPE}has shape"),
    (57, "a list", torch.Tensor.tolist, TypeError, f"{SHAPE}must be a tensor"),
    (70, "a shard", lambda t: t[: len(t) // 2], ValueError, f"{SHAPE}the parameter needs"),
]


# ---- checkpoints of other optimizers ------------------------------------------------------------


def of_torch(name, **options):
    def stepped():
        optimizer = getattr(torch.optim, name)(matrices(), lr=LR, **options)
        run(optimizer, range(3))
        return optimizer

    return stepped


SGD, ADAMW, MUON = of_torch("SGD", momentum=0.9), of_torch("AdamW"), of_torch("Muon")
IS_ONE = "group 0 of the checkpoint is one of"
MISSING = r"the checkpoint has no \['exp_avg', 'exp_avg_sq'\] for parameter 0 of group 0, only"

# what wrote the checkpoint -> error, optimizers that refuse it
WRITERS = [
    ("SGD", SGD, f"{IS_ONE} SGD: it has 'dampening' and lacks .*'betas'", ("AdamW",)),
    ("SGD", SGD, f"{IS_ONE} SGD: it has 'dampening' and lacks .*'ns_steps'", MATRICES),
    ("AdamW", ADAMW, f"{IS_ONE} Adam: it has 'betas' and lacks .*'momentum'", ("SGD", *MATRICES)),
    ("Muon", MUON, f"{IS_ONE} Muon: it has 'ns_steps' and lacks .*", ELEMENTWISE),
    ("Adagrad", of_torch("Adagrad"), MISSING, ("AdamW",)),
]


def written_by(source, match):
    def check(name):
        optimizer, twin = (
            make(name, matrices(), momentum=0.9) if name == "SGD" else make(name, matrices())
            for _ in range(2)
        )
        with refused(optimizer, ValueError, match):
            optimizer.load_state_dict(source().state_dict())
        goes_on(optimizer, twin)

    return check


def written_by_ours(name):
    """By the name of its base."""
    for other in {*OURS} - {name}:
        optimizer, twin = make(name, matrices()), make(name, matrices())
        source = make(other, matrices())
        run(source, range(2))
        with refused(optimizer, ValueError, "group 0 of the checkpoint was stepped by"):
            optimizer.load_state_dict(source.state_dict())
        goes_on(optimizer, twin)


def torch_refuses(name):
    """An inner optimizer's own error, here AdamW's."""
    optimizer, twin = make(name, matrices()), make(name, matrices())
    with (
        pytest.warns(UserWarning, match="no lookahead state"),
        refused(optimizer, KeyError, "step"),
    ):
        optimizer.load_state_dict(SGD().state_dict())
    goes_on(optimizer, twin)


NAMESAKES = {"AdamW": ADAMW, "SGD": SGD, "Muon": MUON, "Wrap": ADAMW}
MORE = {"SGD": {"momentum": 0.9}}


def lookahead_starts(name):
    """The checkpoint of torch's namesake: x is where the parameters are, m is 0."""
    source = NAMESAKES[name]()
    params = [nn.Parameter(v) for v in values(source)]
    optimizer = make(name, params, **MORE.get(name, {}))
    with pytest.warns(UserWarning, match=r"no lookahead state \['.*exp_avg_update'\]; it starts"):
        optimizer.load_state_dict(source.state_dict())
    before = values(optimizer)
    optimizer.eval()
    assert [bits(p) for p in before] == [bits(p) for p in values(optimizer)]
    optimizer.train()
    run(optimizer, range(3, 5))


# ---- the right shapes, the wrong values ---------------------------------------------------------


def named(names, **options):
    def build(name, steps):
        params = dict(zip("ab", (p for p in [matrices()[0], matrices()[0]]), strict=True))
        optimizer = make(name, [(n, params[n]) for n in names], **options)
        run(optimizer, range(steps))
        return optimizer

    return build


def changed_places(name):
    source, optimizer, twin = named("ab")(name, 3), named("ba")(name, 2), named("ba")(name, 2)
    with refused(optimizer, ValueError, "parameter names of group 0 differ"):
        optimizer.load_state_dict(source.state_dict())
    goes_on(optimizer, twin)


def one_side_is_unnamed(name):
    """Then places are trusted, as in torch."""
    source, optimizer = named("ab")(name, 3), make(name, [matrices()[0], matrices()[0]])
    optimizer.load_state_dict(source.state_dict())
    state = [params_of(o)[1] for o in (source, optimizer)]
    for key, value in source.state[state[0]].items():
        assert bits(value) == bits(optimizer.state[state[1]][key])


def x_beside_a_training_state(name):
    """A state dict cannot tell which weights come with it; put in as x, they are right."""
    source = ready(name, 5)
    saved = copy.deepcopy(source.state_dict())
    with source.at_iterate():
        xs = values(source)
    optimizer = make(
        name,
        [
            {"params": [nn.Parameter(torch.zeros_like(x)) for x in part]}
            for part in (xs[:1], xs[1:])
        ],
    )
    optimizer.load_state_dict(saved)
    assert not any(p.any() for p in params_of(optimizer)), "loading writes no parameter"
    optimizer.eval()
    with torch.no_grad():
        for p, x in zip(params_of(optimizer), xs, strict=True):
            p.copy_(x)
    optimizer.train()
    for p, y in zip(params_of(optimizer), values(source), strict=True):
        assert ((p - y).abs() <= 2 * ulp(y.abs().clamp(min=1e-3))).all()


def with_nan(count, match):
    def check(name):
        source, optimizer = ready(name, 3), ready(name, 0)
        saved = copy.deepcopy(source.state_dict())
        own = {"Wrap": "lookahead_exp_avg_update"}.get(name, "exp_avg_update")
        for i in range(count):
            saved["state"][i][own].view(-1)[0] = (torch.nan, torch.inf)[i % 2]
        with pytest.warns(UserWarning, match=match.format(own)) as caught:
            optimizer.load_state_dict(saved)
        assert len(caught) == 1
        assert_same(optimizer, loaded(ready(name, 0), saved))

    return check


def eight_bits(name):
    """Formats in which an inner optimizer may keep its state; torch cannot look for NaN in them."""
    source, optimizer = ready(name, 3), ready(name, 0)
    saved = copy.deepcopy(source.state_dict())
    for entries in saved["state"].values():
        entries["exp_avg_8bit"] = torch.zeros(4, dtype=torch.float8_e4m3fn)
        entries["code"] = torch.zeros(4, dtype=torch.uint8)
    optimizer.load_state_dict(saved)
    assert all({"code", "exp_avg_8bit"} <= entries.keys() for entries in optimizer.state.values())


def loaded(optimizer, saved):
    with pytest.warns(UserWarning, match="NaN or infinite"):
        optimizer.load_state_dict(saved)
    return optimizer


def nan_by_name(name):
    optimizer, source = named("ab")(name, 0), named("ab")(name, 2)
    saved = copy.deepcopy(source.state_dict())
    first_nan = first_state(lambda t: t.fill_(torch.nan))(saved)
    with pytest.warns(UserWarning, match=r"NaN or infinite.*: '\w+' of parameter 1 .*\('b'\)$"):
        optimizer.load_state_dict(first_nan)


# ---- files --------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


def file_of(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def bad_files(name):
    """Torch's own errors."""
    whole = file_of(ready(name).state_dict())
    for content, error, match in [
        (whole[: len(whole) // 2], RuntimeError, "PytorchStreamReader failed"),
        (b"not a checkpoint", pickle.UnpicklingError, "Weights only load failed"),
        (b"", EOFError, "^$"),
    ]:
        optimizer, twin = ready(name), ready(name)
        with refused(optimizer, error, match):
            optimizer.load_state_dict(torch.load(io.BytesIO(content)))
        goes_on(optimizer, twin)


def malicious_files(name):
    """Ours load with ``weights_only``, which refuses code; we never load otherwise."""
    optimizer = ready(name)
    saved = torch.load(io.BytesIO(file_of(optimizer.state_dict())), weights_only=True)
    optimizer.load_state_dict(saved)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(io.BytesIO(file_of({**saved, "code": Malicious()})))
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert "torch.load" not in text
    assert "import pickle" not in text


def older(name):
    """Without a format they are read as the first."""
    source, optimizer = ready(name, 3), ready(name, 0)
    saved = source.state_dict()
    assert {group.pop("lookahead_version") for group in saved["param_groups"]} == {1}
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert "lookahead_version" not in optimizer.param_groups[0]
    with torch.no_grad():
        for p, q in zip(params_of(optimizer), params_of(source), strict=True):
            p.copy_(q)
    goes_on(optimizer, source)


ROWS = [
    *(Row(n, what, not_loaded(*row)) for n, what, *row in CORRUPT),
    *(Row(n, what, not_loaded(first_state(c), *row), OURS) for n, what, c, *row in STATE),
    *(
        Row(56, f"{what}'s in {name}", written_by(source, match), (name,))
        for what, source, match, on in WRITERS
        for name in on
    ),
    Row(56, "another of ours", written_by_ours, OURS),
    Row(56, "SGD's in an AdamW inside", torch_refuses, ("Wrap",)),
    Row(56, "its namesake's", lookahead_starts, tuple(NAMESAKES)),
    Row(58, "changed places", changed_places),
    Row(58, "without names on one side", one_side_is_unnamed),
    Row(59, "x beside a training state", x_beside_a_training_state),
    Row(60, "NaN", with_nan(1, "NaN or infinite.*: '{}' of parameter 0 of group 0$")),
    Row(60, "NaN and Inf", with_nan(2, "'{0}' of parameter 0 of group 0; '{0}' of .* group 1$")),
    Row(60, "NaN, by name", nan_by_name),
    Row(60, "8 bits", eight_bits),
    Row(61, "truncated, garbage, empty", bad_files),
    Row(62, "code", malicious_files),
    Row(63, "older", older),
]
