# SPDX-License-Identifier: MIT
"""Torch's generators, divided among the parts of a run."""

from typing import Any

import torch


class Randomness:
    """What one part of a run draws from torch's generators, whatever the others draw.

    It begins with the generators as they are. Each ``with`` block goes on where the last one ended,
    and leaves the generators outside as they were.
    """

    def __init__(self) -> None:
        self._states = self._others = _states()

    def __enter__(self) -> None:
        self._others = _states()
        _set_states(self._states)

    def __exit__(self, *error: object) -> None:
        self._states = _states()
        _set_states(self._others)


def _module() -> Any:
    """Torch's module of the accelerator; None where there is none."""
    if not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())


def _states() -> tuple[torch.Tensor, Any]:
    """States of torch's generators: of the CPU, and of the accelerators."""
    module = _module()
    # one for all devices where there may be several
    read = getattr(module, "get_rng_state_all", getattr(module, "get_rng_state", lambda: None))
    return torch.get_rng_state(), read()


def _set_states(states: tuple[torch.Tensor, Any]) -> None:
    module = _module()
    torch.set_rng_state(states[0])
    nothing = getattr(module, "set_rng_state", lambda state: None)
    getattr(module, "set_rng_state_all", nothing)(states[1])
