"""With and without the extension: what is installed, what works, and what is said."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def python(code, **options):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_without_the_extension_one_warning_says_how_to_build_it():
    with_, without = (
        python(prefix + TRAIN.format("")) for prefix in ("", WITHOUT.format("emanest._C"))
    )
    *news, parameter = without.stdout.splitlines()
    assert parameter == with_.stdout.splitlines()[-1]
    (warning,) = news
    assert "'cpp'" in warning
    assert "pip install --no-build-isolation ." in warning
    assert "'cpu' tensors use 'eager'" in warning


def test_without_the_extension_an_explicit_choice_is_an_error():
    code = WITHOUT.format("emanest._C") + TRAIN.format(", backend='cpp'")
    error = python(code).stderr.splitlines()[-1]
    assert error.startswith(
        "RuntimeError: backend='cpp' cannot be loaded: the extension is not built"
    )


def test_the_loops_of_a_step_have_a_python_form():
    code = (
        WITHOUT.format("emanest._C")
        + "from emanest.backends import guards; print(guards.Guard.__name__)"
    )
    assert python(WITHOUT.format("emanest._C") + code).stdout.strip() == "_Guard"


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


@pytest.fixture
def tree(tmp_path):
    """The sources alone, as a fresh clone has them."""
    for name in ("emanest", "kernels", "csrc"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(tree, *command):
    """Run setup.py where torch cannot be imported, as under pip's build isolation."""
    code = f"sys.argv = ['setup.py', *{list(command)}]; exec(open('setup.py').read())"
    done = python(WITHOUT.format("torch") + code, cwd=tree)
    assert done.returncode == 0, done.stderr
    return done


def test_a_wheel_built_without_torch_is_pure_python(tree):
    build(tree, "-q", "bdist_wheel")
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        *("emanest/optimizers/optimizer.py", "emanest/kernels/backend.py", "emanest/py.typed"),
        "emanest/kernels/tiles.json",
        *("emanest/integrations/lightning.py", "emanest/integrations/transformers.py"),
        *("emanest/integrations/timm.py", "emanest/integrations/torchtitan.py"),
    } <= set(names)
    assert not [name for name in names if name.endswith(".so")]


def test_a_source_distribution_has_all_that_the_extension_needs(tree):
    build(tree, "-q", "sdist")
    (archive,) = (tree / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tree / "unpacked", filter="data")
    (unpacked,) = (tree / "unpacked").iterdir()
    sources = {path.name for path in (ROOT / "csrc").iterdir()}
    assert {path.name for path in (unpacked / "csrc").iterdir()} == sources
    assert (unpacked / "kernels" / "tiles.json").exists()
