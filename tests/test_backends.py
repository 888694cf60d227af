"""The choice of a back end: preference, fallback, and clear errors."""

import warnings

import pytest
import torch

import emanest
from emanest import backends, eager
from emanest.backends import Backend

MISSING = Backend("emanest.no_such_module", ())
ELSEWHERE = Backend("emanest.eager", ("cuda",))
ANYWHERE = Backend("emanest.eager", ())
REASON = "No module named 'emanest.no_such_module'"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("EMANEST_BACKEND", raising=False)


@pytest.fixture
def table(monkeypatch):
    """Put other rows into the table of back ends."""

    def replace(**rows):
        monkeypatch.setattr(backends, "BACKENDS", rows)
        backends._automatic.cache_clear()

    yield replace
    backends._automatic.cache_clear()


def parameter():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_back_end_that_loads_has_the_four_functions(name):
    device = (*backends.BACKENDS[name].devices, "cpu")[0]
    try:
        module = backends.pick(device, name)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert all(callable(getattr(module, f)) for f in ("step_", "follow_", "move_", "nonfinite"))


def test_the_first_that_serves_the_device_is_chosen(table):
    table(other=ELSEWHERE, first=ANYWHERE, second=MISSING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.pick("cpu") is eager


def test_automatic_choice_falls_back_with_one_warning_that_names_the_reason(table):
    table(broken=MISSING, eager=ANYWHERE)
    optimizer = emanest.AdamW([parameter()])
    with pytest.warns(UserWarning, match=f"'broken' cannot be loaded .{REASON}"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        emanest.SGD([parameter()]).step()


def test_without_any_back_end_there_is_an_error(table):
    table(other=ELSEWHERE)
    with pytest.raises(RuntimeError, match="no back end serves 'cpu' tensors"):
        backends.pick("cpu")


ERRORS = {
    "broken": (RuntimeError, f"backend='broken' cannot be loaded: {REASON}"),
    "other": (RuntimeError, "backend='other' does not serve 'cpu' tensors"),
    "fast": (
        ValueError,
        r"backend must be None or one of \['broken', 'other', 'eager'\], got 'fast'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_choice_that_cannot_be_had_is_an_error(table, monkeypatch, name):
    table(broken=MISSING, other=ELSEWHERE, eager=ANYWHERE)
    kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        backends.pick("cpu", name)
    with pytest.raises(kind, match=message):
        emanest.AdamW([parameter()], backend=name)
    monkeypatch.setenv("EMANEST_BACKEND", name)
    with pytest.raises(kind, match=message):
        backends.pick("cpu")


@pytest.mark.parametrize("name", ERRORS)
def test_a_step_without_its_back_end_changes_nothing(table, monkeypatch, name):
    table(broken=MISSING, other=ELSEWHERE, eager=ANYWHERE)
    p, q = parameter(), parameter()
    optimizer = emanest.AdamW([p], lookahead=emanest.NAG(0.5))
    monkeypatch.setenv("EMANEST_BACKEND", name)
    with pytest.raises(ERRORS[name][0], match=ERRORS[name][1]):
        optimizer.step()
    assert torch.equal(p, q)
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    for each in (optimizer, emanest.AdamW([q], lookahead=emanest.NAG(0.5))):
        each.step()
    assert torch.equal(p, q)
    assert optimizer.param_groups[0]["lookahead_t"] == 1


def test_the_environment_overrides_the_automatic_choice(table, monkeypatch):
    table(broken=MISSING, eager=ANYWHERE)
    monkeypatch.setenv("EMANEST_BACKEND", "eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.pick("cpu") is eager


def test_an_empty_environment_variable_is_none(table, monkeypatch):
    table(eager=ANYWHERE)
    monkeypatch.setenv("EMANEST_BACKEND", "")
    assert backends.pick("cpu") is eager


def test_a_group_may_have_a_back_end_of_its_own(table):
    table(broken=MISSING, eager=ANYWHERE)
    groups = [{"params": [parameter()], "backend": "eager"}, {"params": [parameter()]}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emanest.AdamW(groups[:1]).step()
    with pytest.warns(UserWarning, match="'broken'"):
        emanest.AdamW(groups).step()
