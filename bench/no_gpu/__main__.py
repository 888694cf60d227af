# SPDX-License-Identifier: MIT
"""``python3 -m bench.no_gpu [--launch-only] MODULE ARGUMENTS ...``: run a module without a GPU."""

import runpy
import sys

from . import install

_, *arguments = sys.argv
launch_only = arguments[:1] == ["--launch-only"]
sys.argv = arguments[launch_only:]
if not sys.argv:
    sys.exit(__doc__)
install(compute=not launch_only)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
