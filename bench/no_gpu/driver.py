# SPDX-License-Identifier: MIT
"""A driver for Triton that loads and launches nothing."""

import collections
import ctypes
import subprocess

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as drivers

# an H100 or H200
TARGET = GPUTarget("cuda", 90, 32)
PROPERTIES = {
    "max_shared_mem": 232448,
    "multiprocessor_count": 132,
    "max_num_regs": 65536,
    "warpSize": 32,
}

# name of a kernel -> how often it was launched
launched = collections.Counter()
# whether the code that launches a kernel is compiled as well
built = False


class Launcher:
    """What would launch a compiled kernel."""

    def __init__(self, source, metadata):
        self.name = source.name
        if built:
            nvidia.CudaLauncher(source, metadata)

    def __call__(self, *arguments):
        launched[self.name] += 1


class Utils:
    """What would load a kernel, and know the device."""

    def load_binary(self, name, kernel, shared, device):
        """The module, the function, registers, spilled ones, and the most threads."""
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device):
        return PROPERTIES


class Driver:
    """As ``triton.backends.driver.GPUDriver``, as far as compiling and launching go."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return TARGET

    def get_device_capability(self, device=0):
        return divmod(TARGET.arch, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name):
        return nvidia.ty_to_cpp(name)


def install():
    drivers.set_active(Driver())


# what a launcher wants of libcuda to be loaded
SYMBOLS = (
    *("cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGet", "cuDevicePrimaryCtxRetain"),
    *("cuFuncSetAttribute", "cuGetErrorString", "cuPointerGetAttribute"),
)


def build_launchers(folder):
    """From now on fill the cache with what launches kernels, too.

    Triton up to 3.6 has a C compiler make it, for each signature, which takes longer than many a
    kernel; later there is one for all.

    Args:
        folder: for a library in place of ``libcuda``, where there is none to link with.
    """
    global built
    built = hasattr(nvidia, "make_launcher")
    if built and "libcuda.so.1" not in subprocess.getoutput("/sbin/ldconfig -p"):
        source, target = folder / "libcuda.c", folder / "libcuda.so.1"
        source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in SYMBOLS))
        command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source)]
        subprocess.run([*command, "-o", str(target)], check=True)
        knobs.nvidia.libcuda_path = str(folder)
        # launchers find it by its name
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
