# SPDX-License-Identifier: MIT
"""What a GPU machine without a network is brought: ``make gpu-carry``.

    python3 -m bench.carry [--out FOLDER] [--torch 2.13.0+cu130]

Run it with that machine's versions of Python, torch and Triton; where its torch is another build of
the same version, as that for GPUs is, name it, or it will not take the extension. Makes in FOLDER:
compiled kernels, the extension, and other optimizers to compare with, as ``bench/stages/set_up.py``
takes them.
Wheels that are put there by hand are used as well.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from emanest.extension import compiling, cuda, places

from .stages import ROOT
from .stages.set_up import hash_of, libtriton

# pure Python, without what they need in turn: that is torch
PEERS = ("torch-optimi", "pytorch_optimizer", "schedulefree")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "carry")
    parser.add_argument("--work", type=Path, default=Path("/tmp/emanest-gpu"))
    parser.add_argument("--torch", help="the version of torch there, if not that of here")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    extension(args.out, args.torch)
    kernels(args.out, args.work)
    for name in PEERS:
        version = importlib.metadata.version(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(args.out), f"{name}=={version}"], check=True)
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path.name}")


def extension(out, torch_version):
    """Build the extension with CUDA for the torch of the other machine; only the hash is new."""
    if cuda.find_nvcc() is None:
        sys.exit("the extension would have no CUDA: build it where nvcc is")
    os.environ["EMANEST_CUDA"] = "1"
    compiling.build(out / places.NAME, ROOT / "build" / "carried", torch_version=torch_version)


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
