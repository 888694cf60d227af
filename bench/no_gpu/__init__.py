# SPDX-License-Identifier: MIT
"""A GPU that is not there: what GPU code needs to run to its end on a machine without one.

Triton compiles every kernel by its real path, for ``TARGET``, into its real cache, and launches
nothing; the eager back end computes what the kernels would have. Streams and clocks of
``torch.cuda`` do nothing, a graph records operators and repeats them, and tensors asked for on a
GPU lie on the CPU.

    python3 -m bench.no_gpu MODULE ARGUMENTS ...        runs a module on it
    pytest -p bench.no_gpu.installed ...                runs tests on it

What it cannot show: results and times of the kernels, waiting, memory of the device, and the
branches that ask a tensor for its device.
"""

from .. import source_tree  # noqa: F401  where emanest is not installed

INSTALLED = False


def install(compute=True):
    """Put everything in place, for the rest of the process.

    Args:
        compute: let the eager back end compute what the kernels would have. Without that launches
            cost what they cost the host of a GPU, and results are whatever memory held.
    """
    from . import backend, cuda, driver

    global INSTALLED
    driver.install()
    cuda.install()
    backend.install(compute)
    INSTALLED = True
