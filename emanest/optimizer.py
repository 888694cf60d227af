"""The optimizer: from gradients to launches, and what must be remembered afterwards."""

import contextlib
from typing import Any, ClassVar, NamedTuple

import torch

from . import backends, checkpoint, ops, points
from .bases import Base
from .bucket import Bucket
from .buckets import Buckets, check_overlap
from .gradients import all_finite, check_rates, with_gradients
from .groups import (
    check_method,
    check_params_of,
    clock_of,
    completed,
    is_lookahead_entry,
    state_names,
    store,
    vector,
)
from .lookahead import At, Plan, group_entries
from .options import check_group, check_params
from .rules import BASES, LOOKAHEADS
from .watch import Watch, gradients


class Launch(NamedTuple):
    """Parameters of a bucket that take the same step: one call of a back end."""

    bucket: Bucket
    indices: list[int]
    group: dict[str, Any]
    plan: Plan
    base: tuple[str, tuple] | None  # a row of rules.BASES and its numbers; None: not ours
    backend: str | None  # the group's choice


class Optimizer(torch.optim.Optimizer):
    """Base of all optimizers here: a base update followed by a lookahead, one launch per bucket.

    While training, the parameters hold y, the point where gradients are taken. ``eval()`` writes
    the iterate x into them, ``train()`` brings y back bit for bit; evaluate and save in between.

    A subclass names its base optimizers in ``bases``; a parameter group picks one of them with its
    ``base`` entry, by default the first.
    """

    bases: ClassVar[dict[str, Base]] = {}
    dense_only: ClassVar[bool] = True

    def __init__(self, params, defaults, lookahead=None):
        """Check everything; state is allocated at the first step."""
        defaults = {
            "base": next(iter(self.bases)),
            **check_group(defaults),
            **group_entries(lookahead),
            "lookahead_t": 0,
            "train_mode": True,
        }
        super().__init__(check_params(params), defaults)
        self._buckets = Buckets(self.state, self._key)
        self._steady = None  # what the last survey found, while it holds

    def __setstate__(self, state):
        """Restore from a pickle, a deep copy, or the end of ``load_state_dict``."""
        super().__setstate__(state)
        self._buckets = Buckets(self.state, self._key)
        self._steady = None
        checkpoint.complete(self)
        checkpoint.adopt(self)

    def _key(self, name):
        """The key of a state name in ``state[p]``."""
        return name

    def _checked(self, group):
        """A group's options, checked."""
        return check_group(group)

    def add_param_group(self, param_group):
        """Add a group, as in torch; it joins the optimizer's clock and mode.

        ``lookahead`` may be a method or None; ``lookahead_*`` entries override single settings.

        Raises:
            TypeError, ValueError: an option or a parameter is not valid; nothing is added.
        """
        index = len(self.param_groups)
        group = completed(index, param_group, self)
        super().add_param_group(group)
        added = self.param_groups.pop()
        check_params_of(index, added)
        # torch has filled in settings of the default method, which the group may not use
        stale = {k for k in added if k not in group and is_lookahead_entry(k)}
        self.param_groups.append({k: v for k, v in added.items() if k not in stale})

    # ---- one step -------------------------------------------------------------------------------

    # unlike torch.compiler.disable this does not import dynamo
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step from the gradients at y.

        Args:
            closure: evaluates the loss and its gradients at y; called once, before anything else.

        Returns:
            The loss of the closure; None without one.

        Raises:
            RuntimeError: in eval mode; a gradient is sparse, or (``nonfinite="raise"``) not finite.
                Nothing has changed then.
        """
        if self.state and not self.param_groups[0]["train_mode"]:
            raise RuntimeError(
                "step() in eval mode: the parameters hold x, and gradients belong to y; call "
                "train() before the forward pass, or evaluate inside `with opt.at_iterate():`"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self):
        check_rates(self.param_groups)
        chosen = self._known() or self._survey()
        if not chosen or not all_finite(self, chosen):
            return
        points.follow_edits(self, chosen)
        launches, clocks = self._plan(chosen)
        with self._buckets.own_writes(bucket for buckets in chosen for bucket in buckets):
            self._run(launches)
        for bucket, indices, _, plan, *_ in launches:
            bucket.advance(indices, plan.base is None, plan.lookahead)
            bucket.record(indices)
        for group, clock in zip(self.param_groups, clocks, strict=True):
            store(group, clock.after())
        if self._steady is None:
            self._remember(chosen)
        if not self.param_groups[0]["train_mode"]:
            points.to_x(self)

    def _survey(self):
        """For each group its buckets that have gradients, with the indices of those parameters."""
        self._steady = None
        found = with_gradients(self)
        if not any(found):
            return None
        chosen = [
            self._find(group, params, self._newcomers(group))
            for group, params in zip(self.param_groups, found, strict=True)
        ]
        if not all(bucket.published for buckets in chosen for bucket in buckets):
            check_overlap([p for group in self.param_groups for p in group["params"]])
        return chosen

    def _known(self):
        """What the last survey found, if another one would find the same."""
        if self._steady is None:
            return None
        chosen, watch, names = self._steady
        same = names == self._names() and watch.unchanged(self._param_lists(), self._mappings())
        return chosen if same else None

    def _remember(self, chosen):
        entries = [row for buckets in chosen for bucket in buckets for row in bucket.entries()]
        watch = Watch(self._param_lists(), self._mappings(), entries)
        self._steady = (chosen, watch, self._names())

    def _param_lists(self):
        return [group["params"] for group in self.param_groups]

    def _names(self):
        groups = self.param_groups
        return [(state_names(self.bases, g), g.get("capturable", False)) for g in groups]

    def _mappings(self):
        """The dicts that hold the state."""
        return [self.state]

    def _find(self, group, params, newcomers):
        if self._buckets.state is not self.state:
            # the user replaced it, to start afresh
            self._buckets = Buckets(self.state, self._key)
        names = state_names(self.bases, group)
        return self._buckets.find(params, newcomers, names, group.get("capturable", False))

    def own_writes(self):
        """What is written to parameters in a ``with`` block does not count as an edit."""
        return self._buckets.own_writes()

    def _newcomers(self, group):
        """The parameters whose state is allocated together at the first step."""
        return [p for p in group["params"] if p.requires_grad or p.grad is not None]

    def housed(self, group):
        """The group's buckets that hold state, with the indices of its parameters in them."""
        mark = self._key("lookahead")
        params = [p for p in group["params"] if mark in self.state.get(p, ())]
        chosen = self._find(group, params, params)
        self._buckets.publish(chosen)
        return chosen

    def _plan(self, chosen):
        """Decide everything about the step: its launches, and each group's clock after it."""
        launches, clocks = [], []
        for group, buckets in zip(self.param_groups, chosen, strict=True):
            method = check_method(group)
            clock = clock_of(group, method)
            for bucket, indices in buckets.items():
                backend = group.get("backend")
                # one that cannot be had is an error now, while nothing has changed
                backends.pick(bucket.device.type, backend)
                for (step, ahead), same in bucket.by_scalars(indices).items():
                    at = At(clock.t, step, ahead, clock.lr, self._weight_decay(group))
                    plan = method.plan(at, clock.memory) if method else Plan()
                    base = plan.base or self._base(group, plan, clock.lr, step)
                    launches.append(Launch(bucket, same, group, plan, base, backend))
            clocks.append(clock)
        return launches, clocks

    def _weight_decay(self, group):
        return group["weight_decay"]

    def _base(self, group, plan, lr, step) -> tuple[str, tuple] | None:
        """The base rule of a group and its numbers."""
        base = self.bases[group["base"]]
        return base.rule(group), base.numbers({**group, **plan.options}, lr, step)

    def _uncounted(self, group):
        """The ``step`` of state that was saved without one; None: that is an error."""
        return self.bases[group["base"]].uncounted

    def _run(self, launches):
        self._buckets.publish({launch.bucket: None for launch in launches})
        for launch in launches:
            self._run_base(launch)

    def _run_base(self, launch):
        bucket, indices, group, plan, (base, numbers), backend = launch
        params = bucket.members(indices)
        ops.step_(
            base,
            plan.rule,
            bucket.reals(params),
            bucket.reals(self._gradients(params)),
            bucket.columns(BASES[base].state, indices),
            bucket.columns(LOOKAHEADS[plan.rule].state, indices),
            vector((self._gradient_scale(group), *numbers, *plan.numbers)),
            bucket.dtype,
            memo=bucket.memo(indices),
            backend=backend,
        )

    def _gradients(self, params):
        return gradients(params)

    def _gradient_scale(self, group):
        return -1.0 if group.get("maximize") else 1.0

    # ---- x and y --------------------------------------------------------------------------------

    def eval(self):
        """Write x into the parameters, for evaluation and saving; nothing if already there.

        y is kept aside (one value of the parameter's dtype for every parameter that is ahead) and
        is part of ``state_dict()`` until ``train()``.
        """
        if self.param_groups[0]["train_mode"]:
            points.to_x(self)

    def train(self):
        """Bring y back, bit for bit; nothing if already there.

        A parameter that was written since ``eval()`` (by ``model.load_state_dict``, say) is taken
        as the new x.
        """
        if not self.param_groups[0]["train_mode"]:
            points.to_y(self)

    @contextlib.contextmanager
    def at_iterate(self):
        """``eval()`` for the length of a ``with`` block, then the mode it was in before."""
        was_training = self.param_groups[0]["train_mode"]
        self.eval()
        try:
            yield self
        finally:
            if was_training:
                self.train()

    def resync(self):
        """Tell that parameters were written through ``.data``, which leaves no trace.

        All parameters are then treated as written since the last step, or since ``eval()``.
        """
        points.mark_edited(self)

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self):
        """The state in torch's format, of plain types only; a callable step size becomes None."""
        return checkpoint.plain(super().state_dict())

    def load_state_dict(self, state_dict):
        """Load what ``state_dict`` returned; everything is checked first, then copied.

        Parameters are never written. Saved options replace those of the groups, except ``backend``.
        A checkpoint without lookahead (ours or torch's) starts the lookahead of this optimizer.

        Raises:
            TypeError, ValueError: not a state dict, other groups or shapes, state missing.
        """
        checkpoint.check_kind(state_dict)
        handle = self.register_load_state_dict_pre_hook(checkpoint.prepare)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
