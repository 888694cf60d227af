# SPDX-License-Identifier: MIT
"""The CUDA part of the extension: whether it is built, and how.

It has no need of torch, and brings its own copy of the CUDA runtime.
"""

import os
import shlex
import shutil

from .running import BuildError, Job, make, output_of
from .sources import CUDA_FLAGS, CUDA_SOURCE


def find_nvcc():
    """The path of nvcc; None where there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def required():
    """Whether CUDA was asked for, so that going without is an error."""
    return os.environ.get("EMANEST_CUDA") == "1"


def reason_against(cuda_of_torch):
    """Why the extension is built without CUDA; None if it is built with it.

    Args:
        cuda_of_torch: ``torch.version.cuda``.
    """
    if os.environ.get("EMANEST_CUDA") == "0":
        return "EMANEST_CUDA is 0"
    if not (cuda_of_torch or required()):
        return "this torch has none; EMANEST_CUDA=1 asks for it"
    return "no nvcc was found" if find_nvcc() is None else None


def nvcc_command(nvcc, source, target):
    """The command that compiles the CUDA source to an object file."""
    return [nvcc, *CUDA_FLAGS, "-c", source, "-o", target]


def runtime_link_args(nvcc):
    """What links the CUDA runtime statically, so that no installation of CUDA is needed to run.

    Its symbols stay private: torch may bring another version of it.
    """
    probe = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    found = [line for line in output_of(probe).splitlines() if line.startswith("#$ LIBRARIES=")]
    if not found:
        raise BuildError("nvcc --dryrun names no LIBRARIES")
    folders = shlex.split(found[0].partition("=")[2])
    library = "libcudart_static.a"
    return [*folders, f"-l:{library}", f"-Wl,--exclude-libs,{library}", "-ldl", "-lrt", "-lpthread"]


def compiled(csrc, target, headers):
    """Compile the CUDA source to an object file, unless it is there and made of the same.

    Returns:
        The arguments that link it, and what ``make`` returns.
    """
    nvcc = find_nvcc()
    job = Job(
        nvcc_command(nvcc, CUDA_SOURCE, str(target)), target, csrc, [csrc / CUDA_SOURCE, *headers]
    )
    return runtime_link_args(nvcc), make(job)
