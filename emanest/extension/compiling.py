# SPDX-License-Identifier: MIT
"""How the extension is built: the C++ compiler, once for each source, and one link.

Neither setuptools nor ninja nor pybind11's package is needed: pybind11 is among torch's headers.
"""

import os
import shlex
import shutil
import sys
import sysconfig
import time
from functools import partial
from pathlib import Path

from . import cuda, places, sources
from .running import BuildError, Job, make, output_of, run_all

COMPILERS = ("c++", "g++", "clang++")
LIBRARIES = ("c10", "torch", "torch_cpu", "torch_python")
SHARED = {"linux": ["-shared"], "darwin": ["-bundle", "-undefined", "dynamic_lookup"]}


def build(target, folder, say=print, torch_version=None):
    """Build the extension for the torch that is installed.

    Args:
        target: path of the result, which is replaced at the end, in one go.
        folder: where objects are kept, so that what has not changed is not compiled again.
        say: takes lines of progress.
        torch_version: the torch that will load it, if that is another build of the same version.

    Returns:
        Seconds taken.

    Raises:
        BuildError: for the reason given; what was there is as it was.
    """
    start = time.monotonic()
    try:
        import torch
    except ImportError as error:
        raise BuildError("torch was not there: pip builds packages apart from others") from error
    torch_version = torch_version or str(torch.__version__)
    fitting, csrc = sources.wanted(torch_version), sources.csrc()
    if fitting is None or csrc is None:
        raise BuildError(sources.MISSING)
    # for one source: a hash that changes leaves the others
    macros = {"EMANEST_HASH": fitting, "EMANEST_TORCH": torch_version}
    defined = {"info.cpp": [f'-D{name}="{value}"' for name, value in macros.items()]}
    headers = [path for path in sources.files(csrc) if path.suffix == ".h"]
    flags = [*sources.FLAGS, *of_torch("_C"), *includes()]
    folder = Path(folder).absolute()
    # two that build the same objects would take each other's away
    with places.locked(folder, say):
        _make_all(Path(target), folder, csrc, defined, flags, headers, say)
    return time.monotonic() - start


def _make_all(target, folder, csrc, defined, flags, headers, say):
    """Make what is not there of the objects, and link them."""
    import torch

    objects, link_args = [], []

    def compiled(name):
        own = [*flags, *defined.get(name, ())]
        job = compilation(csrc / name, (folder / name).with_suffix(".o"), own, headers)
        objects.append(str(job.target))
        return make(job)

    def compiled_cuda():
        made = folder / "step_cuda.o"
        try:
            args, output = cuda.compiled(csrc, made, headers)
        except BuildError as error:
            if cuda.required():
                raise
            say(f"without CUDA: {error}")
            return compiled(sources.WITHOUT_CUDA)
        objects.append(str(made))
        link_args.extend(args)
        return output

    works = {}
    against = cuda.reason_against(torch.version.cuda)
    if against is None:
        # first: it takes longest
        works[sources.CUDA_SOURCE] = compiled_cuda
    elif cuda.required():
        raise BuildError(f"EMANEST_CUDA is 1, and {against}")
    else:
        say(f"without CUDA: {against}")
        works[sources.WITHOUT_CUDA] = partial(compiled, sources.WITHOUT_CUDA)
    works |= {f"{name}.cpp": partial(compiled, f"{name}.cpp") for name in sources.NAMES}
    run_all(works, say)
    link(target, sorted(objects), link_args)


def compilation(source, target, flags, headers):
    """The job that compiles a C++ source; messages have the source by its name alone."""
    import torch

    facts = str(torch.__version__), sys.version
    command = [*compiler(), *flags, "-c", source.name, "-o", str(target)]
    return Job(command, target, source.parent, [source, *headers], facts)


def link(target, objects, args=()):
    """Link objects to an extension, which replaces what was there in one go."""
    import torch

    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    libraries = [f"-L{folder}", *(f"-l{name}" for name in LIBRARIES)]
    target.parent.mkdir(parents=True, exist_ok=True)
    # not into a file that processes have loaded
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        shared = [*compiler(), *SHARED[sys.platform], "-fopenmp"]
        output_of([*shared, "-o", str(new), *objects, *libraries, *args])
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def compiler():
    """The command of the C++ compiler, from CXX or else by name."""
    if sys.platform not in SHARED:
        raise BuildError(f"the extension is for {' and '.join(SHARED)}, and this is {sys.platform}")
    given = shlex.split(os.environ.get("CXX", ""))
    if given and shutil.which(given[0]) is None:
        raise BuildError(f"no C++ compiler was found: CXX is {given[0]}, and there is none")
    found = given or [path for path in map(shutil.which, COMPILERS) if path][:1]
    if not found:
        raise BuildError(
            f"no C++ compiler was found: looked for {', '.join(COMPILERS)} on PATH; install one "
            "(g++ on Debian and Ubuntu, gcc-c++ on Fedora), or name it in CXX"
        )
    return found


def of_torch(name):
    """Flags that code needs which uses torch, in a module of a name."""
    import torch

    abi = int(torch.compiled_with_cxx11_abi())
    return [
        *("-fPIC", sources.standard(str(torch.__version__))),
        *("-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTORCH_EXTENSION_NAME={name}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
    ]


def includes():
    """Flags that name the folders of headers, of torch and of Python."""
    import torch

    of_torch = os.path.join(os.path.dirname(torch.__file__), "include")
    of_python = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(of_python, "Python.h")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BuildError(
            f"there is no Python.h in {of_python}: install the headers of Python {version} "
            f"(python{version}-dev on Debian and Ubuntu, python{version}-devel on Fedora)"
        )
    folders = [of_torch, os.path.join(of_torch, "torch", "csrc", "api", "include"), of_python]
    # of the system: their warnings are none of ours
    return [text for folder in folders for text in ("-isystem", folder)]
