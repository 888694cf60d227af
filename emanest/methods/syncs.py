# SPDX-License-Identifier: MIT
"""What methods that act at every k-th step have in common."""


def is_sync(t, every):
    """Whether a method that acts at every k-th step acts at the end of step t."""
    return (t + 1) % every == 0


def never_syncs(method, needed, total_steps):
    """What ``misses`` says of a method that does something in runs of ``needed`` steps or more."""
    if needed <= total_steps:
        return ""
    # slow weights are x; LongHorizon's x is y until its first sync
    left = "x stays at the first weights" if method.x_is_state else "its base is left alone"
    return (
        f"{type(method).__name__}(every={method.every}) never syncs in a run of {total_steps} "
        f"step{'s' * (total_steps > 1)}, and {left}: it needs {needed} steps or more"
    )
