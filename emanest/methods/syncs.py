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


def never_syncs_later(method, begun, total_steps, period, after=0):
    """What ``misses_later`` says of a method that does something at every ``period``-th step.

    Args:
        method: the method.
        begun, total_steps: as in ``misses_later``.
        period: steps from one time to the next.
        after: how many steps later what it did has an effect.
    """
    before, end = (max(0, steps - after) // period for steps in (begun, total_steps))
    if before < end:
        return ""
    left = "x stays where it was" if method.x_is_state else "its base is left alone"
    needed = (before + 1) * period + after - begun
    return (
        f"{type(method).__name__}(every={method.every}) never syncs in a run that is its steps "
        f"{begun} to {total_steps - 1}, and {left}: such a run needs {needed} steps or more"
    )
