# SPDX-License-Identifier: MIT
"""``python -m emanest.doctor``: which back end serves which device, and why not another.

Every back end that loads really takes a small step on every device type that is present, and is
compared with eager on the CPU. Exit status 0: each has a back end that works; 1: one has none.
"""

import argparse
import importlib
import json
import platform
import re
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import backends
from .backends import eager
from .backends.program import record, symbol
from .extension import sources

# of a line that is printed; what is longer goes on in the next
_WIDTH = 120

# float32 arithmetic in another order; a wrong kernel is off by far more
_TOLERANCE = 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m emanest.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args(arguments).json
    found = report()
    print(json.dumps(found, indent=2, default=str) if as_json else text(found))
    return 0 if all(device["chosen"] for device in found["devices"].values()) else 1


def report() -> dict[str, Any]:
    """Everything that the doctor knows, as plain data."""
    return {
        "versions": {
            "emanest": _ask("emanest", "__version__"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _ask("triton", "__version__"),
        },
        "installation": _installation(),
        "extension": _extension(),
        "EMANEST_BACKEND": backends.requested(),
        "devices": {
            device_type: {"names": names, **_examine(device_type)}
            for device_type, names in present().items()
        },
    }


def present() -> dict[str, list[str]]:
    """The device types of this machine, and the names of the devices."""
    found = {"cpu": [_cpu_name()]}
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and torch.accelerator.is_available():
        device_type = accelerator.type
        module = torch.get_device_module(device_type)
        name = getattr(module, "get_device_name", lambda i: f"{device_type}:{i}")
        found[device_type] = [name(i) for i in range(torch.accelerator.device_count())]
    return found


def _examine(device_type):
    """The back ends on a device type: whether each works, which one is chosen."""
    reasons = {name: _reason(name, device_type) for name in backends.BACKENDS}
    asked = backends.requested()
    names = [asked] if asked else backends.automatic(device_type)
    chosen = next((name for name in names if reasons.get(name) == ""), None)
    table = {name: {"works": not reason, "reason": reason} for name, reason in reasons.items()}
    return {"chosen": chosen, "backends": table}


def _reason(name, device_type):
    """Why a back end does not work on a device type; empty if it does."""
    module, reason = backends.find(name, device_type)
    if module is None:
        return reason
    try:
        difference = _difference(module, device_type)
    except Exception as error:
        return f"fails when it runs: {backends.explain(error)}"
    # so that NaN counts as wrong
    return "" if difference <= _TOLERANCE else f"differs from eager by {difference:.1e}"


@torch.no_grad()
def _difference(module, device_type):
    """How far a back end is from eager after one call of each of its functions."""
    ours, reference = _run(module, device_type), _run(eager, "cpu")
    differences = [(a.cpu() - b).abs().max() for a, b in zip(ours, reference, strict=True)]
    # stack, not max(): this keeps NaN
    return float(torch.stack(differences).max())


def _run(module, device_type):
    """Small calls of each function; what they leave behind."""
    sizes = (1, 1000, 33)

    def tensors(phase):
        # the same on every device, without a generator; at least 0.1, as second moments must be
        counted = [torch.arange(n, dtype=torch.float32, device="cpu") for n in sizes]
        waves = [each.add_(phase).sin_() for each in counted]
        return [wave.mul_(0.4).add_(0.5).to(device_type) for wave in waves]

    ys, gs, snapshots, *state = map(tensors, range(6))
    adamw, ema_nesterov = (1e-2, 1e-4, 0.1, 0.01, 1.5, 1e-8), (0.1, 0.5, 0.4)
    numbers = (1.0, *adamw, *ema_nesterov)
    module.apply_("step", ("adamw", "ema_nesterov"), ys, gs, state, numbers, torch.float32, memo={})
    module.apply_(
        "follow", ("ema_nesterov",), ys, snapshots, state[2:], ema_nesterov, torch.float32, memo={}
    )
    module.apply_("move", ("x_along",), ys, (), state[2:], (0.4,), torch.float32, memo={})
    muons = _run_muon(module, gs, tensors(6))
    gs[1][-1] = float("inf")
    flags = [module.nonfinite(gs, {}), module.nonfinite(ys, {})]
    t = symbol("t")
    program, constants = record([0.3 * t], {"t": t + 1})
    out, clock = (torch.ones(n, dtype=torch.float64, device=device_type) for n in (2, 1))
    module.plan_(program, [clock], constants, out, None)
    planned = [out, clock]
    return [*ys, *snapshots, *(t for column in state for t in column), *muons, *flags, *planned]


def _run_muon(module, gs, momenta):
    """The same for what Muon and NorMuon need besides."""
    device = gs[0].device
    us = [torch.zeros_like(g) for g in gs]
    squares = torch.zeros(len(gs), dtype=torch.float64, device=device)
    numbers = (1.0, 0.05, 0.9)
    module.apply_(
        "momentum", ("ema",), us, gs, [momenta], numbers, torch.float32, squares=squares, memo={}
    )
    # matrices of 40 rows
    os = [us[1].view(40, 25)]
    like = {"dtype": torch.float32, "device": device}
    means, scale, factor = (torch.full((n,), 0.1, **like) for n in (40, 1, 40))
    numbers = (0.1, 1e-8)
    module.rows_("normuon", os, [[means]], [scale], [factor], numbers, torch.float32, memo={})
    product = module.products(device.type).sym_mm(os[0][None])
    # of the size of its terms
    return [*us, *momenta, squares / 1000, means, factor, product / 25]


def _extension():
    """What the compiled extension tells of its build, or why there is none."""
    extension = _ask("emanest.extension.loaded", "_C")
    if isinstance(extension, str):
        return extension
    path = getattr(extension, "__file__", None)
    told = getattr(extension, "build_info", dict)() or {"build": "loads, tells nothing of itself"}
    wanted = sources.wanted(str(torch.__version__))
    fits = {None: "there are no sources to compare with", told.get("hash"): "that of the sources"}
    return {"extension": path, **told, "fits": fits.get(wanted, f"no, {wanted} is wanted")}


def _installation():
    """Where the package is imported from, and which installed copy that hides."""
    here = sources.PACKAGE
    found = {"path": str(here)}
    copies = {
        Path(str(each.locate_file("emanest"))).resolve()
        for each in metadata.distributions(name="emanest")
    }
    others = sorted(str(each) for each in copies - {here.resolve()} if _is_copy(each))
    if others:
        parent = here.parent
        current = parent.resolve() == Path.cwd()
        remedy = "start Python in another folder" if current else f"take {parent} off PYTHONPATH"
        found["warning"] = (
            f"this source tree hides the emanest that is installed in {', '.join(others)}; "
            f"{remedy} to use that one"
        )
    return found


def _is_copy(folder):
    return (folder / "__init__.py").exists()


def _ask(module, attribute):
    """A module's attribute, or in words why it cannot be had."""
    try:
        return getattr(importlib.import_module(module), attribute, "loads, tells nothing of itself")
    except Exception as error:
        return f"none ({backends.explain(error)})"


def _cpu_name():
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model n")]
    except OSError:
        names = []
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


# ---- for people ---------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The report as aligned lines."""
    rows = {**found["versions"], **found["installation"]}
    extension = found["extension"]
    rows |= extension if isinstance(extension, dict) else {"extension": extension}
    rows["EMANEST_BACKEND"] = found["EMANEST_BACKEND"] or "not set"
    width = max(map(len, rows))
    lines = [_wrapped(f"{name:{width}}  ", value) for name, value in rows.items()]
    for device_type, device in found["devices"].items():
        lines += ["", f"{_label(device_type)}: {', '.join(device['names'])}"]
        lines += [_line(name, row, device) for name, row in device["backends"].items()]
        if device["chosen"] is None:
            asked = found["EMANEST_BACKEND"]
            lines.append("  NO BACK END WORKS" if asked is None else f"  {asked!r} DOES NOT WORK")
    return "\n".join(lines)


def _line(name, row, device):
    state = "works" if row["works"] else "no"
    note = "chosen" if name == device["chosen"] else row["reason"]
    return _wrapped(f"  {name:{max(map(len, backends.BACKENDS))}}  {state:5}  ", note)


def _label(device_type):
    # torch calls hip devices "cuda" too
    return f"{device_type} (hip)" if device_type == "cuda" and torch.version.hip else device_type


def _wrapped(head, value):
    """A head and a text, all of it, in as many lines as it takes; commands stay in one piece."""
    words = " ".join(str(value).split())
    # a space that is no place to break a line
    kept = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), words)
    wrapper = textwrap.TextWrapper(
        max(40, _WIDTH - len(head)), break_long_words=False, break_on_hyphens=False
    )
    lines = wrapper.wrap(kept) or [""]
    indented = f"\n{' ' * len(head)}".join(lines)
    return f"{head}{indented}".rstrip().replace("\0", " ")


if __name__ == "__main__":
    sys.exit(main())
