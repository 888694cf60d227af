"""The cases of the benchmark, and for each what it claims in one line."""

from .. import gpu
from . import Found


def run(settings, which):
    quick = ["--quick"] if settings.small else []
    gpu.main(["--out", str(settings.out), "--name", which, *quick, "--only", *SETS[which]])
    return Found([])
