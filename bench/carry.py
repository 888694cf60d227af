"""What a GPU machine without a network is brought: ``make gpu-carry``.

    python3 -m bench.carry [--out FOLDER]

Run it with that machine's versions of Python, torch and Triton. Makes in FOLDER: compiled kernels,
the extension, and other optimizers to compare with, as ``bench/stages/set_up.py`` takes them.
Wheels that are put there by hand are used as well.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from .stages import ROOT
from .stages.set_up import hash_of, libtriton

# pure Python, without what they need in turn: that is torch
PEERS = ("torch-optimi", "pytorch_optimizer", "schedulefree")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "carry")
    parser.add_argument("--work", type=Path, default=Path("/tmp/emanest-gpu"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    extension = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    import emanest._C

    if not emanest._C.build_info()["cuda"]:
        sys.exit("the extension was built without CUDA: build it where nvcc is")
    shutil.copy(emanest._C.__file__, args.out / extension)
    kernels(args.out, args.work)
    for name in PEERS:
        version = importlib.metadata.version(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(args.out), f"{name}=={version}"], check=True)
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path.name}")


def kernels(out, work):
    """Fill the cache at the path where it will be used, and pack it."""
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "bench.gpu_run", "--rehearse", "--stages", "compile"]
    # without this there are five texts beside each binary
    environment = {**os.environ, "TRITON_STORE_BINARY_ONLY": "1", "PYTHONPATH": str(ROOT)}
    done = [*command, "--out", str(work / "carry"), "--work", str(work)]
    subprocess.run(done, cwd=ROOT, env=environment, check=True)
    with tarfile.open(out / "triton.tar.xz", "w:xz") as file:
        file.add(work / "triton", arcname=".")
    (out / "libtriton").write_text(hash_of(libtriton()) + "\n")


if __name__ == "__main__":
    main()
