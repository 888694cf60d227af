"""The package list and the extension, which pyproject.toml cannot express.

``kernels/`` installs as a subpackage. ``emanest._C`` is built where torch can be imported, which
needs ``pip install --no-build-isolation``; without it the package is pure Python and says so at the
first step on a CPU. Where nvcc is, the extension serves GPUs too, whatever torch it is built with:
the CUDA code has no need of torch, and brings its own copy of the CUDA runtime.

Environment:
    EMANEST_CUDA=0: leave CUDA out.
    EMANEST_REQUIRE_EXTENSION=1: an extension that cannot be built is an error, not a warning.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import warnings
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAMES = ["bindings", "cpu", "gather", "guards", "info", "products", "target"]
SOURCES = [f"csrc/{name}.cpp" for name in NAMES]
# no contraction into fused products: eager, C++ and all vector widths then agree bit for bit.
# no errno and no traps: else sqrt and comparisons stay scalar
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS = ["-O3", "-fopenmp", "-fvisibility=hidden", "-g0", *ARITHMETIC]

CUDA_SOURCE, WITHOUT_CUDA = "csrc/step_cuda.cu", "csrc/no_cuda.cpp"
# machine code; newer GPUs compile the last one's PTX
CUDA_ARCHS = ("80", "90")


def standard(version):
    """The flag of C++17 where the headers of this torch allow it; else none: torch sets its own.

    torch 2.11 sets C++17: with the same flag, code that it could not compile fails here as well.
    """
    return ["-std=c++17"] if tuple(map(int, version.split(".")[:2])) < (2, 14) else []


def nvcc_command(nvcc, source, target):
    """The command that compiles the CUDA source to an object file."""
    *_, newest = CUDA_ARCHS
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    # as on the CPU: no contraction, and division and square root as IEEE has them
    arithmetic = ["-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"]
    host = ["-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"]
    rest = ["-std=c++17", "-O3", "--threads=2", "-Xfatbin=-compress-all"]
    return [nvcc, *rest, *arithmetic, *host, *targets, "-c", source, "-o", target]


def find_nvcc():
    """The path of nvcc; None where there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def runtime_link_args(nvcc):
    """What links the CUDA runtime statically, so that no installation of CUDA is needed to run.

    Its symbols stay private: torch may bring another version of it.
    """
    probe = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    found = [line for line in _run(probe).splitlines() if line.startswith("#$ LIBRARIES=")]
    if not found:
        raise RuntimeError("nvcc --dryrun names no LIBRARIES")
    folders = shlex.split(found[0].partition("=")[2])
    library = "libcudart_static.a"
    return [*folders, f"-l:{library}", f"-Wl,--exclude-libs,{library}", "-ldl", "-lrt", "-lpthread"]


def compile_cuda(folder):
    """Compile the CUDA source, unless that has been done to what it and all headers hold now.

    Returns:
        The object file and the arguments that link it.

    Raises:
        RuntimeError: CUDA is left out, for the reason given.
    """
    if os.environ.get("EMANEST_CUDA") == "0":
        raise RuntimeError("EMANEST_CUDA is 0")
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc was found")
    target = Path(folder, "step_cuda.o")
    command = nvcc_command(nvcc, CUDA_SOURCE, str(target))
    record = target.with_suffix(".made_of")
    # not by times: a header that is brought back, or copied with its time, is older than the object
    sources = [CUDA_SOURCE, *sorted(glob("csrc/*.h"))]
    digests = [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources]
    lines = [shlex.join(command), *map("{} {}".format, digests, sources)]
    made_of = "\n".join(lines)
    # written last, so that it vouches for the object
    if not (target.exists() and record.exists() and record.read_text() == made_of):
        target.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        _run(command)
        record.write_text(made_of)
    return str(target), runtime_link_args(nvcc)


def _run(command):
    """The output of a command; RuntimeError with its first complaint if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"nvcc does not run: {error}") from error
    output = done.stdout + done.stderr
    if done.returncode:
        lines = [line for line in output.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), [*lines[-1:], ""][0])
        raise RuntimeError(f"nvcc failed with status {done.returncode}: {reason}")
    return output


def add_cuda(module, folder):
    """Add CUDA to the extension, or what stands in for it, with one line that says why."""
    try:
        target, link_args = compile_cuda(folder)
    except RuntimeError as reason:
        print(f"emanest: building without CUDA, because {reason}")
        module.sources.append(WITHOUT_CUDA)
    else:
        module.extra_objects.append(target)
        module.depends.append(target)
        module.extra_link_args.extend(link_args)


def give_up(error):
    """Go on without the extension, with one warning; the error itself where it is required."""
    if os.environ.get("EMANEST_REQUIRE_EXTENSION") == "1":
        raise error
    lines = str(error).strip().splitlines() or [""]
    warnings.warn(
        f"emanest: installing the pure Python package, the extension cannot be built "
        f"({type(error).__name__}: {lines[-1]})",
        stacklevel=2,
    )


def extension():
    """The extension and the command that builds it; nothing where torch is not installed."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}

    class Build(BuildExtension):
        def build_extensions(self):
            try:
                add_cuda(self.extensions[0], self.build_temp)
                super().build_extensions()
            except Exception as error:
                give_up(error)
                self.extensions.clear()

    module = CppExtension(
        "emanest._C",
        SOURCES,
        extra_compile_args=[*FLAGS, *standard(torch.__version__)],
        extra_link_args=["-fopenmp"],
        depends=glob("csrc/*.h"),
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


# pip runs this file under that name too; the tests do not
if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["emanest", "emanest.*"]), "emanest.kernels"],
        package_dir={"emanest": "emanest", "emanest.kernels": "kernels"},
        package_data={"emanest": ["py.typed"], "emanest.kernels": ["tiles.json"]},
        **extension(),
    )
