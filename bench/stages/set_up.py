# SPDX-License-Identifier: MIT
"""What this machine is, and what was brought along put where it is used.

    triton.tar.xz   compiled kernels, for a cache at the path where they were compiled
    _C.*.so         the extension
    *.whl, folders  other optimizers to compare with

Without the extension it is built in the background; ``extension`` waits for it.
"""

import hashlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import traceback
from pathlib import Path

import torch

from . import ROOT, Found

LOG = "build.txt"


def run(settings):
    lines, data = [], {"python": platform.python_version(), "torch": torch.__version__}
    data["gpu"] = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version,clocks.max.sm")
    data["nvcc"] = _said("nvcc", "--version").splitlines()[-1:]
    data["triton"] = importlib.metadata.version("triton")
    data["libtriton"] = hash_of(libtriton())
    data["cores"] = os.cpu_count()
    lines.append(f"{data['gpu'] or 'no GPU'}; Triton {data['triton']}; {data['cores']} cores")
    good = True
    for part in (_kernels, _extension, _peers, _memory):
        try:
            lines.append(part(settings, data))
        except Exception as error:
            # the others are of use without it
            traceback.print_exc()
            lines.append(f"{part.__name__[1:]}: {type(error).__name__}: {error}")
            good = False
    return Found(lines, data, good)


def _memory(settings, data):
    free, total = torch.cuda.mem_get_info()
    return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"


def extension(settings, seconds):
    """Wait for the extension, if it is being built; whether it is there."""
    end = time.monotonic() + seconds
    building = settings.work / "building"
    while building.exists() and time.monotonic() < end:
        time.sleep(0.5)
    importlib.invalidate_caches()
    return bool(list((ROOT / "emanest").glob(f"_C*{_suffix()}")))


def _said(*command):
    try:
        more = ["--format=csv,noheader"] if command[0] == "nvidia-smi" else []
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def libtriton():
    import triton

    return next((Path(triton.__file__).parent / "_C").glob("libtriton*.so"))


def hash_of(path):
    """Kernels are compiled for one libtriton: with another none of those brought along is used."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _suffix():
    return sysconfig.get_config_var("EXT_SUFFIX")


def _kernels(settings, data):
    archive, cache = settings.carry / "triton.tar.xz", Path(os.environ["TRITON_CACHE_DIR"])
    if archive.exists():
        with tarfile.open(archive) as file:
            file.extractall(cache, filter="data")
    data["kernels"] = len(list(cache.glob("*/*.cubin"))) if cache.exists() else 0
    made = (settings.carry / "libtriton").read_text().strip() if archive.exists() else None
    fits = {None: "none brought along", data["libtriton"]: "for this libtriton"}
    return f"{data['kernels']} kernels in the cache, {fits.get(made, 'for another libtriton')}"


def _extension(settings, data):
    there = ROOT / "emanest"
    for path in settings.carry.glob(f"_C*{_suffix()}"):
        # not into a file that processes have loaded
        new = there / f"{path.name}.new"
        shutil.copy(path, new)
        os.replace(new, there / path.name)
    importlib.invalidate_caches()
    try:
        from emanest.extension.loaded import _C
    except ImportError as error:
        return _built(settings, str(error))
    data["extension"] = _C.build_info()
    return f"extension: {data['extension']}"


def _built(settings, reason):
    """Build the extension in the background; say so, and why."""
    building = settings.work / "building"
    building.touch()
    # not in this group: it goes on when this stage has ended
    command = f"{sys.executable} setup.py build_ext --inplace --force; rm -f {building}"
    with open(settings.work / LOG, "w") as log:
        subprocess.Popen(
            ["sh", "-c", command],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "EMANEST_REQUIRE_EXTENSION": "1"},
        )
    return f"the extension is being built: {reason}"


def _peers(settings, data):
    wheels = sorted(settings.carry.glob("*.whl"))
    site = settings.work / "site"
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command = [*pip, "--upgrade", "--target", str(site), *map(str, wheels)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"peers: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}"
    folders = [path for path in settings.carry.glob("*") if path.is_dir()]
    for path in folders:
        shutil.copytree(path, site / path.name, dirs_exist_ok=True)
    data["peers"] = [path.name for path in (*wheels, *folders)]
    return f"peers: {', '.join(data['peers']) or 'none brought along'}"
