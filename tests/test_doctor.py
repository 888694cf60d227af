"""``python -m emanest.doctor``: what it says is so, because it tried."""

import json
import os
import re
import subprocess
import sys
import types

import pytest
import torch

from emanest import backends, doctor
from emanest.backends import Backend, eager


def fails(*args, **kwargs):
    raise RuntimeError("no image for\n  this device")


def idle(*args, **kwargs):
    pass


def off(*args, **kwargs):
    """A pass whose last number is wrong."""
    args = list(args)
    args[5] = (*args[5][:-1], 1.01 * args[5][-1])
    eager.apply_(*args, **kwargs)


def poisons(name, rules, ys, *args, **kwargs):
    ys[0].fill_(torch.nan)


def only(name, work):
    """Another way to do a pass."""
    return lambda *args, **kwargs: (work if args[0] == name else eager.apply_)(*args, **kwargs)


def always(gs, memo=None):
    return torch.ones(1)


# name of a back end -> what it does otherwise than eager, and what the doctor says of it
BROKEN = {
    "fails": ({"apply_": fails}, r"fails when it runs: RuntimeError: no image for\n  this device"),
    "idle": ({"apply_": only("follow", idle)}, r"differs from eager by 1\.\de\+00"),
    "off": ({"apply_": only("step", off)}, r"differs from eager by \d\.\de-0\d"),
    "poisons": ({"apply_": only("move", poisons)}, "differs from eager by nan"),
    "always": ({"nonfinite": always}, r"differs from eager by 1\.0e\+00"),
    "unmoved": ({"apply_": only("momentum", idle)}, r"differs from eager by \d\.\de-01"),
    "rowless": ({"rows_": idle}, r"differs from eager by \d\.\de[+-]0\d"),
    "planless": ({"plan_": idle}, r"differs from eager by 1\.0e\+00"),
    "multiplies": ({"products": fails}, r"fails when it runs: RuntimeError: .*\n.*"),
    "partial": ({"apply_": None}, "fails when it runs: TypeError: .*"),
    "elsewhere": ({"DEVICES": ("cuda",)}, "serves only 'cuda' tensors as it is here"),
}
MISSING = Backend("emanest.no_such_module", ())
WORKING = {"eager": Backend("emanest.backends.eager", ())}


@pytest.fixture(autouse=True)
def only_the_cpu(monkeypatch):
    monkeypatch.delenv("EMANEST_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_picked", {})
    monkeypatch.setattr(doctor, "present", lambda: {"cpu": ["a processor"]})


@pytest.fixture
def table(monkeypatch):
    """Set the table of back ends: names of ``BROKEN``, then other rows."""

    def replace(*names, **rows):
        made = {}
        for name in names:
            module = types.ModuleType(f"stub_{name}")
            vars(module).update({**vars(eager), **BROKEN[name][0], "__name__": module.__name__})
            monkeypatch.setitem(sys.modules, module.__name__, module)
            made[name] = Backend(module.__name__, ())
        monkeypatch.setattr(backends, "BACKENDS", {**made, **rows})

    return replace


def examine():
    return doctor.report()["devices"]["cpu"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_back_end_that_loads_and_does_not_work_is_found_out(table, name):
    table(name, **WORKING)
    found = examine()
    assert found["chosen"] == "eager"
    assert not found["backends"][name]["works"]
    assert re.fullmatch(BROKEN[name][1], found["backends"][name]["reason"])
    assert found["backends"]["eager"] == {"works": True, "reason": ""}


def test_a_back_end_that_does_not_load_says_why(table):
    table(missing=MISSING, **WORKING)
    reason = examine()["backends"]["missing"]["reason"]
    assert reason == "cannot be loaded: No module named 'emanest.no_such_module'"


STATUS = [
    # names in the table, EMANEST_BACKEND, what is chosen
    (("eager",), None, "eager"),
    (("fails", "eager"), None, "eager"),
    (("fails",), None, None),
    (("fails", "eager"), "eager", "eager"),
    (("eager", "fails"), "fails", None),
    (("eager",), "fast", None),
]


@pytest.mark.parametrize(("names", "asked", "chosen"), STATUS)
def test_the_status_is_0_where_the_back_end_in_force_works(
    table, monkeypatch, capsys, names, asked, chosen
):
    if asked is not None:
        monkeypatch.setenv("EMANEST_BACKEND", asked)
    rows = WORKING if "eager" in names else {}
    table(*(n for n in names if n in BROKEN), **rows)
    assert doctor.main(["--json"]) == (0 if chosen else 1)
    found = json.loads(capsys.readouterr().out)
    assert found["EMANEST_BACKEND"] == asked
    assert found["devices"]["cpu"]["chosen"] == chosen
    assert doctor.main([]) == (0 if chosen else 1)
    words = {None: "NO BACK END WORKS"}.get(asked, f"{asked!r} DOES NOT WORK")
    assert (words in capsys.readouterr().out) == (chosen is None)


def test_a_back_end_that_serves_on_request_only_is_not_chosen(monkeypatch, table):
    table(slow=Backend("emanest.backends.eager", ("cuda",), (("cpu", "SLOWLY"),)), **WORKING)
    assert examine()["backends"]["slow"]["reason"] == "serves 'cpu' tensors only where SLOWLY=1"
    monkeypatch.setenv("SLOWLY", "1")
    assert examine()["backends"]["slow"]["works"]
    assert examine()["chosen"] == "eager"


def test_text_has_one_short_line_for_each_fact(table):
    table("fails", missing=MISSING, **WORKING)
    found = doctor.report()
    found["extension"] = {"simd": ["avx2", "avx512"], "cuda": False}
    head, device = doctor.text(found).split("\n\n")
    facts = dict(line.split(maxsplit=1) for line in head.splitlines())
    assert facts["torch"] == torch.__version__
    assert facts["simd"] == "['avx2', 'avx512']"
    assert facts["EMANEST_BACKEND"] == "not set"
    assert device.splitlines() == [
        "cpu: a processor",
        "  fails    no     fails when it runs: RuntimeError: no image for this device",
        "  missing  no     cannot be loaded: No module named 'emanest.no_such_module'",
        "  eager    works  chosen",
    ]


def test_a_long_reason_is_cut_in_text_and_whole_in_json():
    row = {"works": False, "reason": "long " * 100}
    device = {"names": ["a processor"], "chosen": None, "backends": {"eager": row}}
    found = {**doctor.report(), "devices": {"cpu": device}}
    assert max(map(len, doctor.text(found).splitlines())) < 200


@pytest.mark.parametrize("extension", [{"build_info": lambda: {"simd": "avx2"}}, {}])
def test_the_extension_tells_of_its_build_if_it_can(monkeypatch, extension):
    monkeypatch.setitem(sys.modules, "emanest._C", types.SimpleNamespace(**extension))
    expected = {"simd": "avx2"} if extension else "loads, tells nothing of itself"
    assert doctor.report()["extension"] == expected


def test_it_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "emanest.doctor", "--json"]
    environment = {**os.environ, "EMANEST_BACKEND": "eager"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = json.loads(run.stdout)
    assert run.returncode == 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"]["cpu"]["chosen"] == "eager"
    assert found["devices"]["cpu"]["names"][0]


@pytest.mark.gpu
def test_every_device_that_is_present_has_a_back_end_that_works(monkeypatch):
    monkeypatch.undo()
    found = doctor.report()["devices"]
    assert set(found) == {"cpu", "cuda"}
    assert all(device["chosen"] for device in found.values())
    assert len(found["cuda"]["names"]) == torch.cuda.device_count()
