# SPDX-License-Identifier: MIT
"""What a lookahead method is: settings, the state it keeps, what it does at each step.

A method is a small frozen dataclass. A group holds its name (``lookahead``) and its settings
(``lookahead_stepsize``, ``lookahead_decay``, ...), where they can be overridden per group and where
``state_dict`` saves them; the dataclass is their template and their validator.
"""

from collections.abc import Container, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from ..rules import State
from ..values import by, choice, count, meant, warn

Self = TypeVar("Self", bound="Method")  # typing has it from Python 3.11 on


class StepInfo(NamedTuple):
    """Where a parameter stands when a step begins; numbers, or 0-d tensors on its device."""

    t: Any  # steps of the optimizer so far: windows and syncs follow it
    step: Any  # base updates of this parameter so far
    ahead: Any  # where its y is, as the last plan said; 0: y is x
    lr: Any
    weight_decay: Any


class Plan(NamedTuple):
    """What one step does to a parameter."""

    rule: str = "none"  # a row of rules.LOOKAHEADS
    numbers: tuple[Any, ...] = ()
    # where y is after the step. 0: y is x; else, of a method that looks ahead along a direction or
    # between two points, how far; of others a number that says at which point
    ahead: Any = 0.0
    # options of the base that this step overrides
    options: Mapping[str, Any] = MappingProxyType({})
    # another base for this step: a row of rules.BASES and its numbers
    base: tuple[str, tuple[Any, ...]] | None = None


def momentum_of(group):
    """The option that gives the base a momentum, as ``momentum=0.9``; empty without one."""
    beta1, momentum = group.get("betas", (0.0,))[0], group.get("momentum", 0.0)
    if beta1 != 0:
        return f"betas[0]={beta1}"
    return f"momentum={momentum}" if momentum != 0 else ""


METHODS: dict[str, type["Method"]] = {}  # name in a group -> method
MEMORY: dict[str, None] = {}  # the names of all that methods remember from step to step


def named(name, what="lookahead"):
    """The class of the method that goes by a name; ValueError, which lists them, without one."""
    return METHODS[choice(what, name, METHODS)]


def checked(check, *arguments):
    """Metadata of a setting: it is what ``check(name, value, *arguments)`` returns."""
    return {"check": by(check, *arguments)}


def needed(cls):
    """The settings of a method that have no default."""
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]


@dataclass(frozen=True)
class Method:
    """A lookahead method.

    ``remember`` and ``plan`` are pure. Methods without syncs write them without a branch on an
    argument, so that they also work on 0-d tensors (a step captured in a CUDA graph).
    """

    name: ClassVar[Any]  # in a group
    state: ClassVar[tuple[str, ...]]  # each may be a rules.State
    points: ClassVar[tuple[Any, Any]]  # rows of rules.POINTS: x from y; y from x, if known
    memory: ClassVar[dict[str, float]] = {}  # numbers carried from step to step, at their start
    syncs: ClassVar[bool] = False  # acts at some steps only
    x_is_state: ClassVar[bool] = False  # where y is x, it equals the first state

    positions: ClassVar[tuple[str, ...]]  # state that holds a point, not a direction
    memory_entries: ClassVar[tuple[str, ...]]  # of a group, which hold the memory

    def __init_subclass__(cls) -> None:
        """Make the method known by its name, and name what follows from state and memory."""
        super().__init_subclass__()
        if vars(cls).get("name") is not None:
            known = METHODS.get(cls.name, cls)
            # one that is written anew, in a notebook say, takes its own place
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{cls.__qualname__} has name={cls.name!r}, by which groups and checkpoints "
                    f"mean {known.__module__}.{known.__qualname__}: give it another"
                )
            METHODS[cls.name] = cls
        MEMORY.update(dict.fromkeys(cls.memory))
        # a base of several methods may leave out what they differ in
        state = map(State, getattr(cls, "state", ()))
        cls.positions = tuple(each for each in state if each.position)
        cls.memory_entries = tuple(f"lookahead_{name}" for name in cls.memory)

    def __post_init__(self) -> None:
        """Check the settings, each by its ``checked``."""
        for f in fields(self):
            if "check" in f.metadata:
                value = f.metadata["check"](f.name, getattr(self, f.name))
                object.__setattr__(self, f.name, value)

    @property
    def capturable(self) -> bool:
        """Whether ``plan`` can be evaluated on a device."""
        return not self.syncs

    @property
    def along(self) -> bool:
        """Whether it looks ahead along a direction m, which is then its first state."""
        return self.points[1] == "y_along"

    @classmethod
    def with_settings(cls: type[Self], settings: Mapping[str, Any]) -> Self:
        """The method with settings of a mapping.

        Raises:
            TypeError: one is unknown or missing, or of the wrong kind; the message names it.
            ValueError: one is out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                question = meant(str(name).removeprefix("lookahead_"), known)
                raise TypeError(
                    f"lookahead {cls.name!r} has no setting {name!r} (it has {known}){question}"
                )
        missing = [name for name in needed(cls) if name not in settings]
        if missing:
            entries = "".join(f', "{name}": ...' for name in missing)
            beside = ", ".join(f"lookahead_{name}=..." for name in missing)
            raise TypeError(
                f"lookahead {cls.name!r} needs {' and '.join(missing)}: pass "
                f'{{"name": "{cls.name}"{entries}}}, or {beside} where settings stand beside a name'
            )
        return cls(**settings)

    @classmethod
    def for_run(cls: type[Self], total_steps: int, **settings: Any) -> Self:
        """The method for a run of a known length, with windows by the published fractions of it.

        Methods without windows are ``cls(**settings)``. A warning says what will never happen in
        so short a run; see ``misses``.

        Args:
            total_steps: steps of the optimizer in the whole run, at least 1.
            settings: of the method; windows among them win over the published ones.

        Raises:
            TypeError, ValueError: an argument is unknown, missing, of the wrong kind or out of
                range.
        """
        total_steps = count("total_steps", total_steps)
        method = cls.with_settings(settings).fitted(total_steps, settings)
        if missed := method.misses(total_steps):
            warn(missed)
        return method

    def fitted(self: Self, total_steps: int, given: Container[str]) -> Self:
        """The method with windows by the length of a run, but for the settings named in given."""
        return self

    def misses(self, total_steps: int, begun: int = 0) -> str:
        """What of the method never happens in a run, in a sentence; else empty.

        Args:
            total_steps: how many steps there will have been at its end.
            begun: how many there were before it, as in a second run with the same optimizer.
        """
        return ""

    def settings(self) -> dict[str, Any]:
        """The settings as the plain entries of a parameter group."""
        return {f"lookahead_{f.name}": getattr(self, f.name) for f in fields(self)}

    def note_base(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of the group that say what its base was like as it was made."""
        return {}

    def check_base(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of the base that the method cannot work with."""

    def remember(self, t: Any, lr: Any, initial_lr: Any, memory: dict[str, Any]) -> dict[str, Any]:
        """The memory, brought up to step t; initial_lr is a scheduler's, 0 without one."""
        return memory

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """What step ``info.t`` does; ``memory`` includes that step."""
        raise NotImplementedError


class NoLookahead(Method):
    """The base alone: y is x."""

    name: ClassVar[None] = None
    state: ClassVar[tuple[str, ...]] = ()
    points: ClassVar[tuple[None, None]] = (None, None)

    def plan(self, info: StepInfo, memory: dict[str, Any]) -> Plan:
        """Nothing is added."""
        return Plan()


NO_LOOKAHEAD = NoLookahead()


# what stands for a method wherever one is taken: itself, its name, a mapping of its "name" and
# settings (as YAML and JSON have them), or None
MethodLike: TypeAlias = Method | str | Mapping[str, Any] | None
