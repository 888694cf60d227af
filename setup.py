"""The package list and the extension, which pyproject.toml cannot express.

``kernels/`` installs as a subpackage. ``emanest._C`` is built where torch can be imported, which
needs ``pip install --no-build-isolation``; without it the package is pure Python and says so at the
first step on a CPU.
"""

from setuptools import find_packages, setup

SOURCES = ["csrc/bindings.cpp", "csrc/step_cpu.cpp", "csrc/watch.cpp"]
# no contraction into fused products: eager, C++ and all vector widths then agree bit for bit.
# no errno and no traps: else sqrt and comparisons stay scalar
FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-g0"]


def extension():
    """The extension and the command that builds it; nothing where torch is not installed."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}
    module = CppExtension(
        "emanest._C",
        SOURCES,
        extra_compile_args=FLAGS,
        extra_link_args=["-fopenmp"],
        depends=["csrc/rules.h", "csrc/step.h", "csrc/convert.h", "csrc/watch.h"],
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(
    packages=[*find_packages(include=["emanest", "emanest.*"]), "emanest.kernels"],
    package_dir={"emanest": "emanest", "emanest.kernels": "kernels"},
    package_data={"emanest": ["py.typed"]},
    **extension(),
)
