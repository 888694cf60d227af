# SPDX-License-Identifier: MIT
"""CUDA graphs: while one is captured, work is recorded, to be done at every replay, and not done.

What is copied from memory of the host or made to last must come before: such memory would be the
graph's, or read anew at a replay. A step outside of the capture, a warm-up, sees to that.
"""

import torch

# types of devices that are asked whether work is being captured
DEVICE_TYPES = {"cuda"}


def capturing(device_type):
    """Whether work on a type of device ("cpu", "cuda", ...) is being recorded."""
    return device_type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse(device_type, reason):
    """Raise RuntimeError, with a reason, if work on a type of device is being recorded."""
    if capturing(device_type):
        raise RuntimeError(f"a CUDA graph is being captured: {reason}")


def need_warm_up(device_type, what):
    """Raise RuntimeError if work is being recorded and ``what`` was not there before."""
    refuse(
        device_type,
        f"{what}; take a step outside of it first, a warm-up with the same parameters, options and "
        "kinds of gradients",
    )


def check(optimizer, device_type):
    """Raise RuntimeError if a step is being recorded whose numbers would be those of the capture.

    Args:
        optimizer: whose step.
        device_type: where it takes place.
    """
    if not capturing(device_type):
        return
    name = type(optimizer).__name__
    for index, group in enumerate(optimizer.param_groups):
        if not group.get("capturable", False):
            refuse(
                device_type,
                f"every replay would take the step of {name} with the same numbers; set "
                f"capturable=True, which group {index} lacks",
            )
        if group.get("nonfinite") == "raise":
            refuse(
                device_type,
                f"nonfinite='raise' of group {index} of {name} reads on the host what it finds; "
                "take 'skip' or 'propagate'",
            )
        if group["params"] and not isinstance(group["lookahead_t"], torch.Tensor):
            need_warm_up(device_type, f"the clock of group {index} of {name} is on the host")
