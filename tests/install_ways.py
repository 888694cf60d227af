# SPDX-License-Identifier: MIT
"""Every usual way to install, each in a fresh environment: ``make check-install``.

    python tests/install_ways.py [--dist FOLDER] [WAY ...]

Installs the commit that is checked out, takes a step, runs ``python -m emanest.build``, takes a
step again, and prints a table: seconds, whether the extension is there, what was printed. Exit
status 1 if a way ends otherwise than its row says. Needs git, uv and a package index. With --dist
the distributions in a folder are checked and installed, which ``make release`` has made there.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]

# a step on the CPU in another folder than the sources': what it warns of, where the extension is
STEP = """
import json, warnings, torch, emanest
from emanest import backends
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optimizer = emanest.AdamW([p], lookahead=emanest.EMANesterov())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer.step()
print(json.dumps({
    "backend": backends.pick("cpu").__name__.rpartition(".")[2],
    "version": emanest.__version__,
    "printed": [str(w.message) for w in caught],
}))
"""
BUILD = "python -m emanest.build"


class Way(NamedTuple):
    """A way to install."""

    install: str  # of a shell, in a clone; ``python`` and ``pip`` are the environment's
    extension: bool  # whether it leaves the extension
    make: str = ""  # makes what is installed, in dist/
    built: bool = True  # whether ``python -m emanest.build`` then leaves the extension
    compiler: bool = True  # whether there is one on the path
    needs: tuple[str, ...] = ()  # what the environment has beside torch


# what a build that is not isolated takes from the environment
TOOLS = {"needs": ("setuptools", "wheel")}
PLATFORM_WHEEL = "pip wheel --quiet --no-deps --no-build-isolation -w dist ."
WAYS = {
    "pip": Way("pip install .", False),
    "pip, not isolated": Way("pip install --no-build-isolation .", True, **TOOLS),
    "pip, editable": Way("pip install -e .", False),
    "pip, editable, not isolated": Way("pip install --no-build-isolation -e .", True, **TOOLS),
    "uv": Way("uv pip install .", False),
    "uv, not isolated": Way("uv pip install --no-build-isolation .", True, **TOOLS),
    "git line": Way("pip install git+file://$PWD", False),
    "sdist": Way("pip install dist/*.tar.gz", False, "uv build -q --sdist -o dist"),
    "pure wheel": Way("pip install dist/*-none-any.whl", False, "uv build -q --wheel -o dist"),
    "wheel of this platform": Way("pip install dist/*-linux_*.whl", True, PLATFORM_WHEEL, **TOOLS),
    "no compiler": Way(
        *("pip install dist/*-none-any.whl", False, PLATFORM_WHEEL),
        **{"built": False, "compiler": False, **TOOLS},
    ),
}
# those whose distributions are published
RELEASED = ("sdist", "pure wheel", "wheel of this platform")
# from nothing, as README has it
README = (
    "python3 -m venv .env",
    ".env/bin/pip install torch=={torch}",
    ".env/bin/pip install -e .",
    ".env/bin/python -m emanest.build",
    ".env/bin/python examples/minimal.py",
)


class Done(NamedTuple):
    """A command that has run."""

    seconds: float
    processor: float  # seconds of the processor, of all its processes
    status: int
    output: str


def run(command, folder, environment):
    """Run a command of a shell."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(seconds, used, done.returncode, done.stdout)


def must(command, folder, environment):
    """The same; what fails ends all with what it has printed."""
    done = run(command, folder, environment)
    if done.status:
        sys.exit(f"{command!r} failed with status {done.status}:\n{done.output}")
    return done


def clone(folder):
    """The commit that is checked out, in a folder of its own."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)


def without_compiler(folder):
    """A path on which there is what is needed but no compiler."""
    folder.mkdir()
    for tool in ("bash", "sh", "git", "uname", "ldd", "env", "uv"):
        if path := shutil.which(tool):
            (folder / tool).symlink_to(path)
    return str(folder)


def environment_of(folder, path, cache):
    """Environment variables with an environment of Python in a folder, and a cache of its own."""
    # as a user has them: without those of this project, of make, and of a compiler
    ours = ("PYTHONPATH", "CXX", "CC", "EMANEST_", "MAKE")
    others = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    home = Path.home() / ".cache"
    return {
        **others,
        "PATH": f"{folder / 'env' / 'bin'}:{path}",
        "VIRTUAL_ENV": str(folder / "env"),
        "XDG_CACHE_HOME": str(cache),
        # what is downloaded stays where it is
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(home / "pip")),
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(home / "uv")),
        # the same torch from both
        "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", "")),
    }


def try_way(way, torch, folder, cache, dist):
    """Install in one way; a row of the table. The cache is shared: the first way fills it."""
    clone(folder / "clone")
    if dist is not None:
        shutil.copytree(dist, folder / "clone" / "dist")
    path = os.environ["PATH"] if way.compiler else without_compiler(folder / "bin")
    environment = environment_of(folder, path, folder / "no cache")
    must(f"uv venv --quiet --seed --python {sys.executable} env", folder, environment)
    packages = " ".join([f"torch=={torch}", "numpy", *way.needs])
    must(f"uv pip install --quiet {packages}", folder, environment)
    commands = [way.make] * bool(way.make and dist is None) + [way.install]
    installed = [must(command, folder / "clone", environment) for command in commands]
    step = f"python -c '{STEP.replace(chr(39), chr(34))}'"
    first = json.loads(must(step, folder, environment).output.splitlines()[-1])
    environment["XDG_CACHE_HOME"] = str(cache if way.compiler else folder / "no cache")
    built = run(BUILD, folder, environment)
    second = json.loads(must(step, folder, environment).output.splitlines()[-1])
    said = " ".join(first["printed"])
    faults = [
        *["the extension is not as expected"] * ((first["backend"] == "cpp") != way.extension),
        *["the step does not name the command"] * (not way.extension and BUILD not in said),
        *["the build does not end as expected"] * ((built.status == 0) != way.built),
        *["no extension after the build"] * ((second["backend"] == "cpp") != (way.built)),
        *["a warning in spite of it"] * bool(way.built and second["printed"]),
    ]
    return {
        "commands": " && ".join(commands),
        "seconds": sum(each.seconds for each in installed),
        "extension": first["backend"] == "cpp",
        "printed": said,
        "build": built.seconds,
        "processor": built.processor,
        "build said": built.output.strip().splitlines()[-1],
        "then": second["backend"],
        "faults": faults,
    }


def try_readme(torch, folder):
    """From nothing to the first result, with a cache of compiled code that is empty."""
    clone(folder / "clone")
    environment = environment_of(folder, os.environ["PATH"], folder / "cache")
    environment.pop("VIRTUAL_ENV")
    commands = [command.format(torch=torch) for command in README]
    return [(command, must(command, folder / "clone", environment)) for command in commands]


def table(rows):
    """The rows as Markdown."""
    titles = (
        "way",
        "seconds",
        "extension",
        "`python -m emanest.build`",
        "then",
        "the first step printed",
    )
    lines = [titles, ("---",) * len(titles)]
    for name, row in rows.items():
        build = f"{row['build']:.0f} s ({row['processor']:.0f} of processors): {row['build said']}"
        extension = "yes" if row["extension"] else "no"
        cells = (
            name,
            f"{row['seconds']:.0f}",
            extension,
            build,
            row["then"],
            row["printed"] or "-",
        )
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_metadata(dist):
    """What a package index would refuse in the distributions of a folder; they are three."""
    files = sorted(dist.glob("emanest-*"))
    if len(files) != len(RELEASED):
        sys.exit(f"{dist} must hold {len(RELEASED)} distributions, got {[f.name for f in files]}")
    for file in files:
        if file.suffix == ".whl":
            archive = zipfile.ZipFile(file)
            (member,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            raw = archive.read(member)
        else:
            with tarfile.open(file) as archive:
                raw = archive.extractfile(f"{file.name.removesuffix('.tar.gz')}/PKG-INFO").read()
        found = Metadata.from_email(raw)
        print(f"{file.name}: {found.name} {found.version}, {file.stat().st_size / 2**20:.1f} MiB")
        if found.version.is_devrelease:
            print(f"  {found.version} is no release: give its commit a tag, such as v0.1.0")


def main(arguments=None):
    """Try all ways, or those that are named; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", help=f"of {[*WAYS, 'readme']}; by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "install")
    parser.add_argument("--torch", default="2.13.0", help="version of torch (%(default)s)")
    parser.add_argument("--dist", type=Path, help="install the distributions of this folder")
    args = parser.parse_args(arguments)
    names = args.ways or (RELEASED if args.dist else [*WAYS, "readme"])
    if unknown := set(names) - {*WAYS, "readme"}:
        parser.error(f"no such way: {sorted(unknown)}; there are {[*WAYS, 'readme']}")
    if shutil.which("uv") is None:
        sys.exit("needs uv, which requirements.txt has: make check-install")
    if args.dist:
        check_metadata(args.dist)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    rows = {}
    for i, name in enumerate(name for name in WAYS if name in names):
        folder = args.out / str(i)
        folder.mkdir()
        rows[name] = try_way(WAYS[name], args.torch, folder, args.out / "cache", args.dist)
        print(f"{name}: {rows[name]['faults'] or 'ok'}", flush=True)
        shutil.rmtree(folder)
    print(table(rows))
    if "readme" in names:
        (args.out / "readme").mkdir()
        steps = try_readme(args.torch, args.out / "readme")
        total = sum(done.seconds for _, done in steps)
        print(f"\nFrom nothing to the first result: {total:.0f} s\n")
        for command, done in steps:
            print(f"    {done.seconds:6.1f} s  {done.processor:6.1f} s of processors  {command}")
        print(f"\n{steps[-1][1].output.strip()}")
        shutil.rmtree(args.out / "readme")
    (args.out / "ways.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["faults"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
