# SPDX-License-Identifier: MIT
"""The optimizer: one step from gradients to passes, the modes, and what torch asks of it.

Here is the order of a step. All else is a few lines that hand the work on: to ``state/modes.py``
between x and y, to ``groups.py`` for a new group, to ``checkpoint.py`` for state that is loaded.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch.optim.optimizer import ParamsT

from ..backends.guards import gradients
from ..groups import check_fit, check_params_of, completed, defaults_of
from ..methods.given import group_entries
from ..methods.method import MethodLike
from ..state import modes
from ..state.clock import CLOCK
from ..state.edits import restart_edited
from ..state.metrics import metrics
from ..step import nonfinite, plan
from ..step.select import Part, Selection
from ..values import check_params, choice
from . import checkpoint
from .base import Base

Loss = TypeVar("Loss")
This = TypeVar("This", bound="Optimizer")


class Optimizer(torch.optim.Optimizer):
    """Base of all optimizers here: a base update followed by a lookahead.

    One launch steps all parameters of the same rules, dtype, device and back end, whatever their
    groups and numbers.

    While training, the parameters hold y, the point where gradients are taken. ``eval()`` writes
    the iterate x into them, ``train()`` brings y back bit for bit; evaluate and save in between.

    Two optimizers over the same parameters take each other's steps for edits: before another one
    takes over, call ``eval()`` on the first and let it go. To evaluate both, use
    ``emanest.at_iterate([a, b])``.

    Parameters may be replaced in their group and groups be popped: from the next step on nothing is
    kept of them but what is left in ``state``, as in torch, and the others go on, bit for bit.

    Parameters and gradients are plain tensors, subclasses that own their memory, or ``DTensor`` of
    such. A gradient that a functional collective is still writing is waited for. Other classes with
    a ``__torch_dispatch__`` (wrappers, as of float8 and quantised weights) are a TypeError: only
    the class knows what its memory means. For fake tensors (``FakeTensorMode``) a step makes the
    state that it makes for others, and computes nothing; what needs values is a TypeError.

    A subclass names its base optimizers in ``bases``; a parameter group picks one of them with its
    ``base`` entry, by default the first.
    """

    bases: ClassVar[dict[str, Base]] = {}

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], lookahead: MethodLike = None
    ) -> None:
        """Check everything; state is allocated at the first step."""
        name, base = next(iter(self.bases.items()))
        defaults = {
            "base": name,
            **base.checked(defaults),
            **group_entries(lookahead),
            **CLOCK,
        }
        super().__init__(check_params(params), defaults)
        self._begin()

    # Whether GradScaler leaves unscaling and skipping to us: where we need not wait for it. For
    # type checkers a plain attribute, which a subclass may set.
    _step_supports_amp_scaling: bool = property(  # pyright: ignore[reportAssignmentType]
        lambda self: plan.scales_on_device(self)
    )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a deep copy, or the end of ``load_state_dict``; as in torch.

        What ``state`` lacks stays as it is. After an error nothing has changed.
        """
        with checkpoint.all_or_nothing([self]):
            super().__setstate__(state)
            if not state.keys() & checkpoint.HOUSED:
                return
            self._begin()
            checkpoint.complete(self)
            checkpoint.adopt(self)
        # a checkpoint has neither defaults nor parameters
        if "defaults" in state:
            self.buckets.record_all()

    def _begin(self):
        """Set up what no pickle and no checkpoint holds."""
        owned = "_selection" in vars(self) and self.buckets.owned
        self._selection = Selection(self.state, self._key, owned)
        # a load goes on counting
        self._skips: nonfinite.Skips = vars(self).get("_skips") or nonfinite.Skips()

    # static: a bound method would keep a deleted optimizer, and its state, until garbage collection
    @staticmethod
    def _key(name):
        """The key of a state name in ``state[p]``, which is pickled: no ``rules.State``."""
        return str(name)

    # ---- what other modules ask of an optimizer -------------------------------------------------

    def _base(self, group) -> Base:
        """The base optimizer of a group."""
        return self.bases[choice("base", group.get("base"), self.bases)]

    def _defaults(self, group):
        """The options of a group by name, with their defaults; its other entries are the user's."""
        return defaults_of(group, self.defaults, self.bases)

    def _holders(self) -> list[torch.optim.Optimizer]:
        """The optimizers that hold the groups and the state."""
        return [self]

    # Any: what it is, only modules of the package have to know
    @property
    def buckets(self) -> Any:
        """Where the parameters' state is."""
        return self._selection.buckets

    def with_state(self, wanted: Callable[..., bool] | None = None) -> list[Part]:
        """The parts that hold state; see ``Selection.with_state``."""
        return self._selection.with_state(self, wanted)

    # ---- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; it joins the optimizer's clock and mode.

        ``lookahead`` may be all that a constructor takes; ``lookahead_*`` entries override single
        settings.

        Raises:
            TypeError, ValueError: an option or a parameter is not valid; nothing is added.
        """
        index = len(self.param_groups)
        group = completed(index, param_group, self)
        # torch fills in settings of the default method and base, which the group may not use
        stale = self.defaults.keys() - group.keys()
        try:
            super().add_param_group(group)
            check_params_of(index, group)
            check_fit(index, group, self._base(group))
            for key in stale:
                group.pop(key, None)
        except BaseException:
            del self.param_groups[index:]
            raise

    # ---- one step -------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    # unlike torch.compiler.disable this does not import dynamo
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Take one step from the gradients at y.

        Args:
            closure: evaluates the loss and its gradients at y; called once, before anything else.

        Returns:
            The loss of the closure; None without one.

        Raises:
            RuntimeError: in eval mode, once there is state, or after a closure that left it so; a
                gradient is sparse, or (``nonfinite="raise"``) not finite; a CUDA graph is being
                captured, and ``capturable=True`` is missing, or a step before the capture.
            TypeError, ValueError: an option that was set since, the learning rate say, is not
                valid; a parameter or a gradient is of a class that cannot be stepped, or has no
                memory. In all these cases nothing has changed, but that what a lookahead method
                kept which a group has left may be gone.
        """
        self._check_mode()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self._check_mode()
        with torch.no_grad():
            self._step()
        return loss

    def _check_mode(self, name="step()"):
        if self.state and not self.training:
            raise RuntimeError(
                f"{name} in eval mode: the parameters hold x, and gradients belong to y; call "
                "train() before the forward pass, or evaluate inside `with opt.at_iterate():`"
            )

    def _step(self):
        groups = self._selection.setups(self)
        parts = self._selection.with_gradients(self, groups)
        if parts is None:
            self._skipped()
            return
        if self._selection.fake:
            # state appears as after any step, and there is nothing to compute
            self._allocate(parts)
            return
        happens, skip = nonfinite.check(self, parts)
        self._skips.add(happens, skip)
        if not happens:
            self._skipped()
            return
        restart_edited(self, parts)
        launches, clocks, done = plan.plan(self, groups, parts, skip, self._selection)
        try:
            with self.buckets.ours(parts):
                self._run(launches, clocks)
        except BaseException:
            plan.undo(launches, clocks)
            raise
        done()
        if not self._selection.steady:
            self._selection.remember(self, groups)
        if not self.training:
            modes.to_x(self)

    def _skipped(self):
        """Hook for ``Wrap``: a step does not happen, and here nothing changes."""

    def _allocate(self, parts):
        self.buckets.publish(parts)

    def _run(self, launches, clocks):
        if not self._selection.steady:
            self._publish(launches)
        self._run_passes(launches, clocks)

    def _publish(self, launches):
        self.buckets.publish(part for launch in launches for part in launch.joint.parts)

    def _run_passes(self, launches, clocks=()):
        """Collect the inputs of all passes, then run them: what fails before moves no parameter."""
        inputs = [launch.inputs(self._gradients) for launch in launches]
        for clock in clocks:
            clock.run()
        for launch, each in zip(launches, inputs, strict=True):
            launch.step(*each)

    _gradients = staticmethod(gradients)

    # ---- x and y --------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the parameters hold y; in eval mode they hold x."""
        return self.param_groups[0]["train_mode"]

    def eval(self) -> None:
        """Write x into the parameters, for evaluation and saving; nothing if already there.

        y is kept aside (one value of the parameter's dtype for every parameter that is ahead) and
        is part of ``state_dict()`` until ``train()``. So is what LongHorizon, GPA and Schedule-Free
        hold where y is x (between the syncs of the first, and with ``mu_y`` or ``momentum`` 1): to
        tell whether it has been written when ``train()`` comes.
        """
        if self.training:
            modes.to_x(self)

    def train(self) -> None:
        """Bring y back, bit for bit; nothing if already there.

        A parameter that was written since ``eval()`` (by ``model.load_state_dict``, say) is taken
        as the new x; not if its bits are those that it had, as when averages of the weights were
        put in and taken out again. To tell, one copy of such a parameter is made for a moment.
        """
        if not self.training:
            modes.to_y(self)

    @contextlib.contextmanager
    def at_iterate(self: This) -> Iterator[This]:
        """``eval()`` for the length of a ``with`` block; ``train()`` after it if it was in that."""
        was_training = self.training
        self.eval()
        try:
            yield self
        finally:
            if was_training:
                self.train()

    @contextlib.contextmanager
    def part_of_step(self: This) -> Iterator[This]:
        """What is written to parameters in a ``with`` block belongs to the step.

            opt.step()
            with torch.no_grad(), opt.part_of_step():
                for p in model.parameters():
                    p.clamp_(-1, 1)

        For constraints that are put on the weights after every step, and for steps that walk the
        weights somewhere and back (SAM, around all of it, ``step()`` included or not). Without it a
        method that keeps positions takes such a write for an edit: it restarts from the new values
        at every step, and its lookahead does next to nothing.

        Written are the parameters, y; the positions stay as they are. So slow weights (Lookahead,
        LongHorizon, SNOO, NALA) and z (GPA, Schedule-Free) are not projected: they go on with steps
        that begin at projected points, and x, which is found from them, may lie outside of the
        constraint; project what ``eval()`` shows before it is used elsewhere. x of GPA and
        Schedule-Free moves with y, by 1 / mu_y of the write. EMA-Nesterov and NAG take every write
        so, with or without this: x and y move together.

        Edits before and after the block are edits, as ever; what is written in it counts where it
        raises, too. Blocks may be inside one another.

        Raises:
            RuntimeError: in eval mode, once there is state: the parameters hold x.
        """
        self._check_mode("part_of_step()")
        with modes.part_of_step(self):
            yield self

    def resync(self) -> None:
        """Tell that parameters were written through ``.data``, which leaves no trace.

        All parameters are then treated as written since the last step, or since ``eval()``.
        """
        modes.mark_edited(self)

    def metrics(self) -> dict[str, torch.Tensor]:
        """Figures about the lookahead, computed now.

        Takes a pass over all parameters, and memory for four copies of the largest in float64.
        Nothing waits for a GPU until a figure is read, unless steps are counted there
        (``capturable``, a GradScaler's skipped steps).

        Returns:
            0-d tensors by name, over all parameters that have state:

            x_norm: of x.
            m_norm: of the direction m, of those under a method that keeps one.
            displacement_norm: of y - x, as the parameters hold them.
            m_ratio, displacement_ratio: the last two relative to x_norm; NaN before the first step.
            skipped_steps: calls of ``step()`` in which an overflow or ``nonfinite="skip"`` kept the
                step from happening, since this object was made or unpickled. A GradScaler on a CPU
                does not call ``step()`` then.
        """
        return metrics(self, self._skips)

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's format, of plain types only; a callable step size becomes None."""
        # before hooks of the user, which may make something else of it
        with self.register_state_dict_post_hook(checkpoint.plain, prepend=True):
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned; everything is checked first, then copied.

        Parameters are never written. Saved entries replace those of the groups, except ``backend``
        and ``param_names``. Options, settings of the method, clock and mode that a checkpoint lacks
        stay as constructed; other entries that it lacks (a scheduler's ``initial_lr``, the user's
        own) go, as in torch. A checkpoint without lookahead (ours or torch's) starts the lookahead
        of this optimizer, one with another method replaces it: each with a warning. Values that are
        not finite are loaded, with a warning that names them.

        Nothing here tells which weights a state belongs to, unless the parameters have names, which
        are compared without what torch's wrappers put into them (``DataParallel``, DDP, FSDP1,
        ``compile``, activation checkpointing): load those that were saved in the same mode. For
        weights saved in eval mode beside a state saved in train mode, call ``eval()`` after this,
        load the weights, and call ``train()``.

        Raises:
            TypeError, ValueError: not a state dict, other groups, names (also in another order) or
                shapes, state missing, another optimizer's, or of a format that a newer version
                wrote. Nothing has changed then, nor if memory runs out.
        """
        checkpoint.check_dict(state_dict)
        with (
            self.register_load_state_dict_pre_hook(checkpoint.prepare),
            checkpoint.all_or_nothing([self, *self._holders()]),
            # what is loaded will be written outside inference mode
            torch.inference_mode(False),
        ):
            super().load_state_dict(state_dict)
