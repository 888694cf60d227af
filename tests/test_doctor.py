# SPDX-License-Identifier: MIT
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
from emanest.extension import sources


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
MISSING = Backend("no_such_package.backend", ())
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
    assert reason == "cannot be loaded: No module named 'no_such_package'"


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
        "  missing  no     cannot be loaded: No module named 'no_such_package'",
        "  eager    works  chosen",
    ]


REMEDY = "run `python -m emanest.build`"


@pytest.mark.parametrize("length", range(0, 300, 7))
def test_a_long_reason_goes_on_in_the_next_line_and_a_command_stays_in_one(length):
    reason = ("long " * 99)[:length] + f" {REMEDY}"
    row = {"works": False, "reason": reason}
    device = {"names": ["a processor"], "chosen": None, "backends": {"eager": row}}
    found = {**doctor.report(), "devices": {"cpu": device}, "extension": reason}
    text = doctor.text(found)
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("`python -m emanest.build`") == 2
    # nothing is left out
    assert text.count("long") == 2 * reason.count("long")


@pytest.fixture
def loaded(monkeypatch):
    """Set what is loaded as the extension."""

    def replace(**attributes):
        stub = types.SimpleNamespace(
            _C=types.SimpleNamespace(__file__="/there/_C.so", **attributes)
        )
        monkeypatch.setitem(sys.modules, "emanest.extension.loaded", stub)

    return replace


def wanted():
    return sources.wanted(str(torch.__version__))


@pytest.mark.parametrize(
    ("told", "fits"),
    [
        (lambda: {"hash": wanted(), "cuda": False}, "that of the sources"),
        (lambda: {"hash": "0", "cuda": False}, f"no, {wanted()} is wanted"),
    ],
)
def test_the_extension_tells_where_it_is_and_of_its_build(loaded, told, fits):
    loaded(build_info=told)
    expected = {"extension": "/there/_C.so", **told(), "fits": fits}
    assert doctor.report()["extension"] == expected
    head, *_ = doctor.text(doctor.report()).split("\n\n")
    facts = dict(line.split(maxsplit=1) for line in head.splitlines())
    assert (facts["extension"], facts["fits"]) == ("/there/_C.so", fits)


def test_an_extension_that_tells_nothing_of_its_build_says_so(loaded):
    loaded()
    assert doctor.report()["extension"]["build"] == "loads, tells nothing of itself"


def test_without_an_extension_the_doctor_says_why_and_what_builds_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "emanest.extension.loaded")
    monkeypatch.setitem(sys.modules, "emanest._C", None)
    found = doctor.report()["extension"]
    assert found.startswith("none (")
    assert found.endswith(f": {REMEDY})")


def copies(monkeypatch, *folders):
    """Set where emanest is installed."""
    each = [types.SimpleNamespace(locate_file=lambda name, at=at: at / name) for at in folders]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: each)


def package_in(folder):
    (folder / "emanest").mkdir(parents=True)
    (folder / "emanest" / "__init__.py").write_text("")
    return folder


def test_a_source_tree_that_hides_an_installed_copy_says_so(monkeypatch, tmp_path):
    here, there = package_in(tmp_path / "tree"), package_in(tmp_path / "site")
    monkeypatch.setattr(sources, "PACKAGE", here / "emanest")
    copies(monkeypatch, here, there, tmp_path / "of an editable one, whose package is elsewhere")
    hides = f"this source tree hides the emanest that is installed in {there / 'emanest'}; "
    for folder, remedy in (
        (here, "start Python in another folder"),
        (tmp_path, f"take {here} off"),
    ):
        monkeypatch.chdir(folder)
        found = doctor.report()["installation"]
        assert found["path"] == str(here / "emanest")
        assert found["warning"].startswith(hides + remedy)
    words = " ".join(doctor.text(doctor.report()).split())
    assert found["warning"] in words


def test_an_emanest_that_hides_none_has_no_warning(monkeypatch, tmp_path):
    here = package_in(tmp_path)
    monkeypatch.setattr(sources, "PACKAGE", here / "emanest")
    copies(monkeypatch, here, tmp_path / "gone")
    assert doctor.report()["installation"] == {"path": str(here / "emanest")}


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
