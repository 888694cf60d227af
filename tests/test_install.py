# SPDX-License-Identifier: MIT
"""With and without the extension: what is installed, what works, and what is said."""

import importlib
import importlib.metadata
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import emanest
import fresh
from emanest.extension import places, sources

ROOT = Path(__file__).parents[1]

# the module that cannot be imported, then what runs without it
WITHOUT = "import sys; sys.modules[{!r}] = None; "

TRAIN = """
import warnings, torch, emanest
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optimizer = emanest.AdamW([p], lookahead=emanest.EMANesterov(){})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer.step()
    optimizer.step()
print(*(str(w.message) for w in caught), sep="\\n")
print(p.tolist())
"""


def test_without_the_extension_one_warning_says_how_to_build_it():
    with_, without = (
        fresh.python(prefix + TRAIN.format("")) for prefix in ("", WITHOUT.format("emanest._C"))
    )
    *news, parameter = without.stdout.splitlines()
    assert parameter == with_.stdout.splitlines()[-1]
    (warning,) = news
    assert "'cpp'" in warning
    assert ": run `python -m emanest.build`; 'cpu' tensors use 'eager'" in warning


def test_without_the_extension_an_explicit_choice_is_an_error():
    code = WITHOUT.format("emanest._C") + TRAIN.format(", backend='cpp'")
    error = fresh.python(code).stderr.splitlines()[-1]
    assert error.startswith("RuntimeError: backend='cpp' cannot be loaded: ")
    assert error.endswith(": run `python -m emanest.build`; backend=None chooses one")


def test_the_warning_has_the_reason_of_a_build_that_failed(tree):
    """As setup.py leaves it."""
    reason = "no C++ compiler was found: looked for c++ " + "and others " * 30 + "on PATH"
    (tree / "emanest" / "_C.failed").write_text(reason)
    done = fresh.python(TRAIN.format(""), cwd=tree, env=nothing_cached(tree))
    warning, _ = done.stdout.splitlines()
    said = f"the extension could not be built ({reason}): run `python -m emanest.build`;"
    assert said in warning


def test_the_loops_of_a_step_have_a_python_form():
    code = (
        WITHOUT.format("emanest._C")
        + "from emanest.backends import guards; print(guards.Guard.__name__)"
    )
    assert fresh.python(code).stdout.strip() == "_Guard"


# that integrations import from
PARTS = "pytorch", "optim._optim_factory", "components.optimizer"


@pytest.mark.parametrize(
    ("framework", "how"),
    [
        ("transformers", "emanest[hf]"),
        ("lightning", "emanest[lightning]"),
        ("timm", "emanest[timm]"),
        ("torchtitan", "emanest[torchtitan]"),
    ],
)
def test_an_integration_without_its_framework_says_what_to_install(framework, how, monkeypatch):
    module = f"emanest.integrations.{framework}"
    # what is imported from, too, in case another test has imported it already
    for name in (framework, *(f"{framework}.{part}" for part in PARTS)):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=rf"{module} needs .*: pip install '{re.escape(how)}'"):
        importlib.import_module(module)


def nothing_cached(folder, **more):
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "EMANEST_CUDA": "0", **more}


FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.fixture
def tree(tmp_path):
    """The sources alone, as a fresh clone has them."""
    for name in ("emanest", "kernels", "csrc"):
        ignored = shutil.ignore_patterns("*.so", "_C.failed", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


# a module of C in place of the extension, which compiles at once
MODULE = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", EMANEST_HASH, -1};
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  return PyModule_Create(&module);
}
"""


@pytest.fixture
def tiny(tree):
    """The same with an extension that compiles at once."""
    for path in (tree / "csrc").glob("*.cpp"):
        path.write_text("")
    (tree / "csrc" / "info.cpp").write_text(MODULE)
    return tree


def setup(tree, *command, without="no_such_module", **variables):
    """Run setup.py where a module cannot be imported: torch, as under pip's build isolation."""
    code = f"import runpy; sys.argv = ['setup.py', *{list(command)}]; "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    python = without_torch if without == "torch" else fresh.python
    return python(WITHOUT.format(without) + code, cwd=tree, env=nothing_cached(tree, **variables))


def without_torch(code, **options):
    """Run code in a process that has never imported torch."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def wheel_of(tree, **how):
    """The name of the wheel that setup.py makes, its files, and what was said."""
    done = setup(tree, "-q", "bdist_wheel", **how)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel.name, zipfile.ZipFile(wheel), done.stderr


# why there is no extension -> how setup.py is run, and the reason that is left
WITHOUT_EXTENSION = {
    "no torch": (
        {"without": "torch"},
        "torch was not there: pip builds packages apart from others",
    ),
    "no compiler": (
        {"CXX": "no-such-compiler"},
        "no C\\+\\+ compiler was found: CXX is no-such-compiler, and there is none",
    ),
    "a compiler that fails": ({"CXX": "false"}, "false failed with status 1: it says nothing"),
}


@pytest.mark.parametrize("case", WITHOUT_EXTENSION)
def test_a_wheel_without_the_extension_is_pure_and_has_the_reason(tree, case):
    how, reason = WITHOUT_EXTENSION[case]
    name, wheel, said = wheel_of(tree, **how)
    assert name.endswith("-py3-none-any.whl")
    names = set(wheel.namelist())
    assert {
        *("emanest/optimizers/optimizer.py", "emanest/kernels/backend.py", "emanest/py.typed"),
        *("emanest/kernels/tiles.json", "emanest/_C.pyi", "emanest/build.py"),
        *("emanest/integrations/lightning.py", "emanest/integrations/transformers.py"),
        *("emanest/integrations/timm.py", "emanest/integrations/torchtitan.py"),
        *(f"emanest/csrc/{path.name}" for path in sources.files(ROOT / "csrc")),
    } <= names
    assert not [name for name in names if name.endswith(".so") or "csrc/generate" in name]
    assert re.fullmatch(reason, wheel.read("emanest/_C.failed").decode().strip())
    assert said.count("installing the pure Python package") == 1


@pytest.mark.parametrize("case", WITHOUT_EXTENSION)
def test_where_the_extension_is_required_there_is_no_wheel_without(tree, case):
    how, reason = WITHOUT_EXTENSION[case]
    done = setup(tree, "-q", "bdist_wheel", EMANEST_REQUIRE_EXTENSION="1", **how)
    assert done.returncode != 0
    assert re.search(reason, done.stderr)
    assert not (tree / "dist").exists()


def test_a_wheel_with_the_extension_is_for_this_python_and_platform(tiny):
    name, wheel, _ = wheel_of(tiny)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{tag}-{tag}t?-\w+_{platform.machine()}\.whl$", name)
    names = set(wheel.namelist())
    assert f"emanest/{places.NAME}" in names
    assert "emanest/csrc/info.cpp" in names
    assert "emanest/_C.failed" not in names


def test_after_a_failure_a_wheel_has_nothing_of_an_earlier_build(tiny):
    wheel_of(tiny)
    shutil.rmtree(tiny / "dist")
    name, wheel, _ = wheel_of(tiny, CXX="no-such-compiler")
    assert name.endswith("-py3-none-any.whl")
    assert f"emanest/{places.NAME}" not in wheel.namelist()


def test_in_place_it_is_built_beside_the_package_and_the_reason_of_a_failure_goes(tiny):
    built, reason = (tiny / "emanest" / name for name in (places.NAME, "_C.failed"))
    assert setup(tiny, "build_ext", "--inplace", CXX="false").returncode == 0
    assert (built.exists(), reason.exists()) == (False, True)
    assert setup(tiny, "build_ext", "--inplace").returncode == 0
    assert (built.exists(), reason.exists()) == (True, False)
    assert "info.cpp  unchanged" in setup(tiny, "build_ext", "--inplace").stdout
    # one that may still fit is left
    assert setup(tiny, "build_ext", "--inplace", CXX="false").returncode == 0
    assert (built.exists(), reason.exists()) == (True, True)


KEPT = {".cff", ".in", ".md", ".py", ".toml", ".txt"}


def test_a_source_distribution_has_all_that_a_clone_has(tree):
    for name in ("tests", "docs", "examples", "bench", ".ci"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    # what lies at the top of a clone, whatever it is called, but for what editors and tools leave,
    # and the file that a worktree of git's has
    for path in ROOT.iterdir():
        if path.is_file() and (path.suffix in KEPT or not path.suffix) and path.name != ".git":
            shutil.copy(path, tree / path.name)
    here = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    done = setup(tree, "-q", "sdist", without="torch")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tree / "unpacked", filter="data")
    (unpacked,) = (tree / "unpacked").iterdir()
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert here - there == set()
    assert {name for name in there - here if ".egg-info/" not in name} == {"PKG-INFO", "setup.cfg"}


# ---- the version --------------------------------------------------------------------------------

SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="not main")

# what is done in a repository of one commit -> its version, N the hash of the last commit
VERSIONS = {
    "": r"0\.1\.0\.dev1\+gN",
    "tag v1.2.3": r"1\.2\.3",
    "tag v1.2.3, change": r"1\.2\.4\.dev0\+gN\.dirty",
    "tag v1.2.3, commit, commit": r"1\.2\.4\.dev2\+gN",
    "tag v1.9.9, commit": r"1\.9\.10\.dev1\+gN",
    "tag v2.0.0rc1": r"2\.0\.0rc1",
    "tag v2.0.0rc1, commit": r"2\.0\.0rc2\.dev1\+gN",
    "tag v1.2.3, commit, tag v1.3.0": r"1\.3\.0",
    # of something else
    "tag paper": r"0\.1\.0\.dev1\+gN",
    **{f"tag v1.2.3{end}, commit": r"0\.1\.0\.dev2\+gN" for end in ("-beta", "+cpu", ".dev1")},
}


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@pytest.mark.parametrize("done", VERSIONS)
def test_the_version_is_that_of_the_tag_or_after_it(tmp_path, done):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *who, *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("")
    git("add", "file")
    for what in ["commit", *filter(None, done.split(", "))]:
        if what == "commit":
            git("commit", "-q", "--allow-empty", "-m", "one")
        elif what == "change":
            (tmp_path / "file").write_text("changed")
        else:
            git(*what.split())
    pattern = VERSIONS[done].replace("N", git("rev-parse", "HEAD")[:7])
    assert re.fullmatch(pattern, SETUP["version"](tmp_path))


def test_versions_sort_as_they_came():
    order = ["0.1.0.dev3+gab", "0.1.0", "0.1.1.dev1+gab", "0.1.1rc1", "0.1.1rc2.dev1+gab", "0.1.1"]
    versions = [Version(each) for each in order]
    assert versions == sorted(versions)


def test_an_archive_has_its_version_and_a_tree_without_git_that_before_the_first(tmp_path):
    assert SETUP["version"](tmp_path) == "0.1.0.dev0"
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: emanest\n")
    assert SETUP["version"](tmp_path) == "0.1.0.dev0"
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: emanest\nVersion: 1.2.3\n")
    assert SETUP["version"](tmp_path) == "1.2.3"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_repository_around_it_or_of_a_hook_has_another_version(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    inside = tmp_path / "unpacked"
    inside.mkdir()
    assert SETUP["version"](inside) == "0.1.0.dev0"
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert SETUP["version"](tmp_path) == "0.1.0.dev0"


def test_the_package_says_its_version():
    assert emanest.__version__ == importlib.metadata.version("emanest")


def test_a_tree_that_is_not_installed_says_a_version_too(tree):
    code = "import sys, emanest; print(emanest.__file__, emanest.__version__)"
    # of where torch is, but for what tells of emanest
    hide = "import importlib.metadata as m; real = m.version\n"
    hide += "def version(name):\n if name == 'emanest': raise m.PackageNotFoundError\n"
    hide += " return real(name)\nm.version = version\n"
    done = fresh.python(hide + code, cwd=tree, env=nothing_cached(tree))
    assert done.stdout.split() == [str(tree / "emanest" / "__init__.py"), "0.1.0.dev0"]
