"""What a lookahead method is: settings, the state it keeps, and what it does at each step."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from ..rules import POSITIONS


class At(NamedTuple):
    """Where a parameter stands when a step begins; numbers, or 0-d tensors on its device."""

    t: Any  # steps of the optimizer so far: windows and syncs follow it
    step: Any  # base updates of this parameter so far
    ahead: Any  # where the parameter is, as the last plan said; 0: it holds x
    lr: Any
    weight_decay: Any


class Plan(NamedTuple):
    """What one step does to a parameter."""

    rule: str = "none"  # a row of rules.LOOKAHEADS
    numbers: tuple = ()
    # where the parameter is after the step. 0: it holds x; else, of a method that looks ahead along
    # a direction or between two points, how far; of others a number that says at which point
    ahead: Any = 0.0
    options: Mapping = MappingProxyType({})  # options of the base that this step overrides
    base: tuple | None = None  # another base for this step: a row of rules.BASES and its numbers


def momentum_of(group):
    """The option that gives the base a momentum, as ``momentum=0.9``; empty without one."""
    beta1, momentum = group.get("betas", (0.0,))[0], group.get("momentum", 0.0)
    if beta1 != 0:
        return f"betas[0]={beta1}"
    return f"momentum={momentum}" if momentum != 0 else ""


@dataclass(frozen=True)
class Method:
    """A lookahead method.

    ``remember`` and ``plan`` are pure. Methods without syncs write them without a branch on an
    argument, so that they also work on 0-d tensors (a step captured in a CUDA graph).
    """

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]]
    points: ClassVar[tuple[str, str | None]]  # rows of rules.POINTS: x from y; y from x, if known
    memory: ClassVar[dict[str, float]] = {}  # numbers carried from step to step, at their start
    syncs: ClassVar[bool] = False  # acts at some steps only
    rests: ClassVar[bool] = False  # where it is not ahead, parameters hold their first state

    positions: ClassVar[tuple[str, ...]]  # state that holds a point, not a direction
    memory_entries: ClassVar[tuple[str, ...]]  # of a group, which hold the memory

    def __init_subclass__(cls):
        """Name what follows from the state and the memory."""
        super().__init_subclass__()
        cls.positions = tuple(name for name in cls.state if name in POSITIONS)
        cls.memory_entries = tuple(f"lookahead_{name}" for name in cls.memory)

    @property
    def capturable(self):
        """Whether ``plan`` can be evaluated on a device."""
        return not self.syncs

    @property
    def along(self):
        """Whether it looks ahead along a direction m, which is then its first state."""
        return self.points[1] == "y_along"

    def settings(self):
        """The settings as the plain entries of a parameter group."""
        return {f"lookahead_{f.name}": getattr(self, f.name) for f in fields(self)}

    def _set(self, **checked):
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def note_base(self, group):
        """What ``check_base`` has to know of the base as it was made: entries of the group."""
        return {}

    def check_base(self, group):
        """Raise ValueError for options of the base that the method cannot work with."""

    def remember(self, t, lr, initial_lr, memory):
        """The memory, brought up to step t; initial_lr is a scheduler's, 0 without one."""
        return memory

    def plan(self, at: At, memory: dict) -> Plan:
        """What step ``at.t`` does; ``memory`` includes that step."""
        raise NotImplementedError
