# SPDX-License-Identifier: MIT
"""The cases of the benchmark: times and claims of each in one line, all of them in a table."""

from .. import gpu, report
from . import Found

# what is measured in which stage, as words of ``bench.gpu``. Not here: what is compiled again and
# again, and what an allocator says in a line
SETS = {
    "elementwise": (
        *("ema adamw small", "ema adamw large", "ema adamw bf16", "adamw large", "many small"),
        *("wrapper alone, small", "wrapper alone, large", "ema adamw small, compiled"),
    ),
    "muon": (
        *("muon", "newton-schulz 768x768 x48", "newton-schulz 768x3072 x24"),
        *("newton-schulz 2048x8192 x24", "newton-schulz 4096x4096", "newton-schulz 4096x11008"),
        *("muon mixed", "newton-schulz 3072x768 x24", "newton-schulz 2048x8192"),
        *("newton-schulz 768x768 x12", "newton-schulz 8192x28672"),
    ),
}
BRIEF = {"elementwise": ("ema adamw small",), "muon": ()}


def run(settings, which):
    words = BRIEF[which] if settings.brief else SETS[which]
    if not words:
        return Found(["left out"])
    quick = ["--quick"] if settings.small else []
    # the limit of a stage is the only one
    limits = ["--minutes", str(settings.seconds / 60), "--case-seconds", str(settings.seconds)]
    path = gpu.new_file(settings.out, which)
    status = gpu.main([*words, "--out", str(settings.out), "--name", path.stem, *limits, *quick])
    data = report.read([path])[0]
    lines = [*data["failed"], *map(" | ".join, shown(report.entries(data)))]
    write_table(settings.out)
    return Found(lines, ok=not status)


def shown(cases):
    """For each case our times, and each ratio that it claims."""
    for name, variants in cases.items():
        ours = next(e for e in variants.values() if "claims" in e.info)
        times = [
            f"{e.timing} {1e3 * e.median:.4g} ms"
            for (variant, _), e in variants.items()
            if variant == ours.name
        ]
        # quantity, timing, value, verdict
        claims = [f"{c[1]}, {c[2]}: {c[3]} {c[6]}" for c in report.rows({name: variants})]
        yield [name, ", ".join(times), *claims]


def write_table(folder):
    """All that has been measured so far in one table."""
    files = sorted(path for which in SETS for path in folder.glob(f"{which}*.json"))
    (folder / "table.md").write_text(report.report(*report.read(files)) + "\n")
