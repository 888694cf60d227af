# SPDX-License-Identifier: MIT
"""What methods that act at every k-th step have in common."""


def is_sync(t, every):
    """Whether a method that acts at every k-th step acts at the end of step t."""
    return (t + 1) % every == 0


def never_syncs(method, total_steps, begun, period, after=0):
    """What ``misses`` says of a method that does something at every ``period``-th step.

    Args:
        method: the method.
        total_steps, begun: as in ``misses``.
        period: steps from one time to the next.
        after: how many steps later what it did has an effect.
    """
    before, end = (max(0, steps - after) // period for steps in (begun, total_steps))
    if before < end:
        return ""
    # slow weights are x; LongHorizon's x is y until its first sync
    left = "x never moves" if method.x_is_state else "its base is left alone"
    run = f"a run of {total_steps} step{'s' * (total_steps > 1)}"
    run = f"a run that is its steps {begun} to {total_steps - 1}" if begun else run
    return (
        f"{type(method).__name__}(every={method.every}) never syncs in {run}, and {left}: "
        f"it needs {(before + 1) * period + after - begun} steps or more"
    )
