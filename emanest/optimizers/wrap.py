# SPDX-License-Identifier: MIT
"""A lookahead around any torch optimizer."""

from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch

from ..backends import storage
from ..groups import check_method, check_params_of, completed_entries, shared_clock
from ..methods.given import group_entries
from ..methods.method import MethodLike
from ..options import suggesting, warn_of_typos
from ..state.clock import CLOCK
from ..values import learning_rate
from . import checkpoint
from .base import Base
from .inner import (
    States,
    check_inner,
    guard,
    is_ours,
    load_all,
    shared_out,
    step_all,
)
from .optimizer import Optimizer


def _checked(group):
    # the other options of an inner optimizer are its own affair
    learning_rate("lr", group["lr"])
    return group


# an optimizer inside a Wrap as a base: it makes the update, and has options and state of its own
INNER = Base(
    rule=lambda group: None,
    numbers=lambda group, info: (),
    options={},
    checked=_checked,
    # a checkpoint of the inner optimizer alone: the lookahead begins now
    uncounted=0.0,
    # the inner optimizer initialises a parameter's state at its first gradient, not before
    allocated=lambda group: [p for p in group["params"] if p.grad is not None],
    dense_only=False,
)


class Wrap(Optimizer):
    """Put a lookahead around an optimizer, or around several that share a model.

        y = snapshot                        u = w - snapshot, w = the parameter after inner.step()
        y = lookahead rule of (w, u)        see the methods

    The wrapper and the inner optimizers share their parameter groups and state: schedulers may act
    on either, and one ``state_dict()`` holds everything. Weight decay of an inner optimizer acts at
    y, with every method. Memory: the method's state plus one snapshot of the parameters, which is
    not saved (between steps it is the parameter itself).

    Step hooks of the wrapper and of the inner optimizers run once per step, those that are global
    with the wrapper as their optimizer.

    If one of several inner optimizers raises in its step, those before it have taken theirs, and
    the lookahead takes these for edits of the parameters.

    Args:
        optimizer: a ``torch.optim.Optimizer``, or a list of them over different parameters; every
            group needs an ``lr``. From now on their own ``step`` raises: step the wrapper.
        lookahead: a method, its name or a mapping, as in ``AdamW``; groups may override it
            (``lookahead_*`` entries).

    Raises:
        TypeError: not an optimizer, or one that cannot be wrapped: it needs a closure or two
            gradients per step, has modes of its own, or takes sparse gradients only.
        ValueError: already wrapped, a parameter that is there twice, or a group without ``lr``.
    """

    @suggesting
    def __init__(
        self,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        lookahead: MethodLike,
    ) -> None:
        """See the class."""
        given: Any = optimizer
        inner = list(given) if isinstance(given, (list, tuple)) else [given]
        if not inner:
            raise ValueError("optimizer must be an optimizer or a list of them, got an empty list")
        for each in inner:
            check_inner(each)
        params = [p for each in inner for group in each.param_groups for p in group["params"]]
        if len(params) != len(set(params)):
            raise ValueError(
                "some parameters belong to more than one of the optimizers, or to one of them "
                "twice: they would be updated twice"
            )
        self.optimizers: list[torch.optim.Optimizer] = inner
        self.defaults: dict[str, Any] = {**inner[0].defaults, **group_entries(lookahead), **CLOCK}
        groups = [(each, group) for each in inner for group in each.param_groups]
        for i, (each, group) in enumerate(groups):
            complete = self._completed(each, group)
            _check_options(i, group, complete, each)
            check_params_of(i, complete)
        self._warned_capturable_if_run_uncaptured = True
        self._hold(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        """Everything is in the inner optimizers."""
        return {"defaults": self.defaults, "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a deep copy, or hand a loaded state to the inner optimizers.

        What ``state`` lacks stays as it is. After an error nothing has changed.
        """
        loaded = {k: v for k, v in state.items() if k in checkpoint.HOUSED}
        self._hold({k: v for k, v in state.items() if k not in loaded}, loaded)

    def _hold(self, attributes, loaded=None):
        """Take attributes, the inner optimizers among them, or give these a loaded state."""
        inner = attributes.get("optimizers") or self.optimizers
        with checkpoint.all_or_nothing([self, *inner]):
            torch.optim.Optimizer.__setstate__(self, attributes)
            if not (loaded or "optimizers" in attributes):
                return
            self._state = States(inner)
            if loaded:
                self._load(**loaded)
            self._begin()
            checkpoint.adopt(self)
            if not loaded:
                self.buckets.record_all()
            for each in inner:
                guard(each, self)

    def _load(self, state=None, param_groups: Any = None):
        if state is None:
            for inner, groups in shared_out(self.optimizers, param_groups):
                inner.param_groups = groups
        elif param_groups is None:
            self.state = state  # pyright: ignore[reportIncompatibleVariableOverride]
        else:
            load_all(self.optimizers, state, param_groups)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimizers' groups themselves; a group added to one of them joins here."""
        first, *others = self.optimizers
        for inner in self.optimizers:
            for group in inner.param_groups:
                if "lookahead_t" not in group:
                    group.update(self._completed(inner, group))
        if others:
            return [group for inner in self.optimizers for group in inner.param_groups]
        return first.param_groups

    @property
    def state(self) -> MutableMapping[torch.Tensor, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimizers' state, as one mapping."""
        return self._state

    @state.setter
    def state(self, mapping: MutableMapping[torch.Tensor, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # it may be our own, which shows those that are emptied here
        mapping = dict(mapping)
        for inner in self.optimizers:
            inner.state = defaultdict(dict)
        self._state = States(self.optimizers)
        self._state.update(mapping)

    @property
    def _step_supports_amp_scaling(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(getattr(o, "_step_supports_amp_scaling", False) for o in self.optimizers)

    @staticmethod
    def _key(name):
        # names of the inner optimizer's state must stay free
        return name if name == "lookahead" else f"lookahead_{name}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer.

        Raises:
            TypeError, ValueError: there are several (add it to the one that shall step it), or the
                group is not valid; nothing is added.
        """
        if len(self.optimizers) != 1:
            raise ValueError(
                f"Wrap holds {len(self.optimizers)} optimizers: call add_param_group on the one "
                "that shall step the group"
            )
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        (inner,) = self.optimizers
        index = len(inner.param_groups)
        group = self._completed(inner, param_group)
        _check_options(index, param_group, {**inner.defaults, **group}, inner)
        try:
            inner.add_param_group(group)
            check_params_of(index, inner.param_groups[index])
        except BaseException:
            del inner.param_groups[index:]
            raise

    def _completed(self, inner, group):
        """A group with our entries; the options that it leaves to its optimizer stay out."""
        entries = {k: v for k, v in self.defaults.items() if is_ours(k)}
        complete = completed_entries(group, {**getattr(inner, "defaults", {}), **entries})
        ours = {k: v for k, v in complete.items() if k in group or is_ours(k)}
        return {**ours, **shared_clock(self.optimizers[0].param_groups)}

    def _skipped(self):
        for inner in self.optimizers:
            # what a scheduler of theirs looks at before it warns of a missing step
            vars(inner)["_opt_called"] = True

    def _base(self, group):
        return INNER

    def _defaults(self, group):
        return next(o.defaults for o in self.optimizers if any(g is group for g in o.param_groups))

    def _holders(self):
        return self.optimizers

    def _allocate(self, parts):
        for part in parts:
            part.bucket.edits.take_snapshots(range(len(part.bucket.params)))
        step_all(self, ())
        super()._allocate(parts)

    def _run(self, launches, clocks):
        raw = [launch for launch in launches if launch.kind.base is not None]
        followed = [launch for launch in launches if launch.kind.base is None]
        parts = [part for launch in followed for part in launch.joint.parts]
        for part in parts:
            part.bucket.edits.take_snapshots(part.indices)
        step_all(self, [p for launch in raw for p in launch.joint.params])
        self._publish(launches)
        numbers = [launch.found() for launch in followed]
        for clock in clocks:
            clock.run()
        for launch, its in zip(followed, numbers, strict=True):
            launch.follow(its)
        for part in parts:
            part.bucket.edits.snapshots_taken(part.indices)
        self._run_passes(raw)

    @staticmethod
    def _gradients(params):
        # an inner optimizer may take sparse ones
        dense = [g if g.layout == torch.strided else g.to_dense() for g in (p.grad for p in params)]
        return list(map(storage.waited, dense))


def _check_options(index, given, group, inner):
    """Check what a group of an inner optimizer is for us; ``given`` may have typos."""
    if "lr" not in group:
        raise ValueError(
            f"group {index} of {type(inner).__name__} has no 'lr', which the lookahead would "
            "follow; if the optimizer needs none, give its groups 'lr': 1.0"
        )
    learning_rate(f"lr of group {index}", group["lr"])
    method = check_method(group, INNER)
    warn_of_typos(f"group {index}", given, {*group_entries(method, group), *CLOCK})
