# SPDX-License-Identifier: MIT
"""What the extension is made of, and the hash by which one that fits is known."""

import hashlib
import mmap
import platform
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

MISSING = f"there are no sources in {PACKAGE / 'csrc'}: install emanest anew"

# how the names of extensions end that only this Python loads
SUFFIX = EXTENSION_SUFFIXES[0]

# of C++ sources; those that take longest first, so that the last to end is a short one
NAMES = ["cpu", "bindings", "products", "guards", "gather", "target", "info"]
CUDA_SOURCE, WITHOUT_CUDA = "step_cuda.cu", "no_cuda.cpp"

# no contraction into fused products: eager, C++ and all vector widths then agree bit for bit.
# no errno and no traps: else sqrt and comparisons stay scalar
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS = ["-O3", "-fopenmp", "-fvisibility=hidden", "-g0", "-DNDEBUG", "-fwrapv", *ARITHMETIC]

# machine code; newer GPUs compile the last one's PTX
CUDA_ARCHS = ("80", "90")
CUDA_FLAGS = [
    *("-std=c++17", "-O3", "--threads=2", "-Xfatbin=-compress-all"),
    # as on the CPU: no contraction, and division and square root as IEEE has them
    *("-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"),
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off",
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS),
    f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}",
]


def standard(torch_version):
    """The standard of C++: C++17 as long as the headers of torch allow it.

    torch 2.11 sets C++17: with the same flag, code that it could not compile fails here as well.
    """
    old = tuple(map(int, re.findall(r"\d+", torch_version)[:2])) < (2, 14)
    return "-std=c++17" if old else "-std=c++20"


def csrc():
    """The folder of sources: in the package, in a source tree beside it; None where there is none.

    That of a source tree is ``csrc``, which ``setup.py`` installs as ``emanest/csrc``.
    """
    places = PACKAGE / "csrc", PACKAGE.parent / "csrc"
    return next((place for place in places if (place / "bindings.cpp").exists()), None)


def files(folder):
    """All files of C++ and CUDA in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in {".h", ".cpp", ".cu"})


def wanted(torch_version):
    """The hash that an extension carries which is built from these sources for this Python.

    Args:
        torch_version: ``torch.__version__``, with what follows a "+" in it.

    Returns:
        16 hexadecimal digits of names and contents of all sources, flags, the versions of torch and
        Python, and the platform; None where there are no sources. Whether CUDA is in it and which
        compiler makes it are left out: either result is right.
    """
    folder = csrc()
    if folder is None:
        return None
    facts = [torch_version, standard(torch_version), SUFFIX, sys.platform, platform.machine()]
    facts += [*NAMES, *FLAGS, *CUDA_FLAGS]
    for path in files(folder):
        facts += [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


# ---- which one a file is, without loading it: two that are loaded would define types twice ------

_MARK = b"emanest-build:"


def marked(path):
    """The hash and the version of torch that a built file carries; None twice without a mark.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return None, None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_MARK)
            text = content[start : start + 200] if start >= 0 else b""
    found = re.match(rb"[^:]*:([0-9a-f]+):([^:]+):", text)
    return (found[1].decode(), found[2].decode()) if found else (None, None)
