# SPDX-License-Identifier: MIT
"""Lightning: validate, save and end at x."""

import contextlib
import warnings
from typing import Any

from ..tools.find import at_iterate, eval_all, find_all, train_all
from ..tools.windows import fit_windows, warn_of_windows
from ..values import flag

try:
    from lightning.pytorch import (  # pyright: ignore[reportMissingImports]
        Callback,
        LightningModule,
        Trainer,
        callbacks,
    )
except ImportError as error:
    raise ImportError(
        "emanest.integrations.lightning needs lightning: pip install 'emanest[lightning]'"
    ) from error


# they write an average into the model as a fit ends; Lightning 2.6 brought the second
_AVERAGING = tuple(
    getattr(callbacks, name)
    for name in ("StochasticWeightAveraging", "WeightAveraging")
    if hasattr(callbacks, name)
)


class EvalAtIterate(Callback):
    """Have ``lightning.Trainer`` validate and save at x, and leave the model at x.

        Trainer(..., callbacks=[EvalAtIterate()])

    Lightning itself never leaves y. This goes to x as a validation starts, the sanity check
    included; y comes back, bit for bit, before the next training batch, and gradients that are
    being accumulated at y stay. Whatever ``trainer.save_checkpoint`` writes in a fit, for a
    ``ModelCheckpoint`` or for others, weights alone too, holds the model at x; the optimizer's
    state beside it holds y, and a run resumes from it bit for bit. When a fit ends, by an exception
    too, the model is at x, where ``trainer.validate``, ``test`` and ``predict`` then find it.

    Callbacks that average weights average y, which they find after each batch. They must come after
    this one, which would otherwise write x over what they leave in the model; it warns of that.

    As training begins it warns of lookaheads that will never begin, or never rest, in the run, or
    that rest for the whole of it; not in manual optimization, of which Lightning does not know how
    many steps there will be.

    Args:
        fit_windows: give lookaheads the published windows of a run of that length, except where
            theirs are not the defaults; a run that is resumed keeps those of its checkpoint.

    Raises:
        TypeError: before the first batch, if ``configure_optimizers`` returned no optimizer of this
            library.
    """

    def __init__(self, fit_windows: bool = False) -> None:
        super().__init__()
        self.fit_windows: bool = flag("fit_windows", fit_windows)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have checkpoints written at x: no hook comes before all of them."""
        if stage == "fit":
            all_of_them = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
            _warn_of_averages(all_of_them[: all_of_them.index(self)])
        if not isinstance(trainer.save_checkpoint, _SaveAtIterate):
            trainer.save_checkpoint = _SaveAtIterate(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo ``setup``."""
        if isinstance(trainer.save_checkpoint, _SaveAtIterate):
            trainer.save_checkpoint = trainer.save_checkpoint.save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the windows of lookaheads are in the run."""
        if not pl_module.automatic_optimization:
            return
        steps = trainer.estimated_stepping_batches
        if self.fit_windows:
            fit_windows(trainer.optimizers, steps, trainer.global_step)
        warn_of_windows(trainer.optimizers, steps, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Bring back y."""
        train_all(find_all(trainer.optimizers))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to x, until the next training batch."""
        _eval(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model at x."""
        _eval(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the model at x, if there is memory for y."""
        try:
            # if there are none of ours, that may be what the exception says
            with contextlib.suppress(TypeError):
                _eval(trainer)
        except RuntimeError as error:
            warnings.warn(
                f"emanest: the model is left at y, not at x, because {error}", stacklevel=2
            )


class _SaveAtIterate:
    """``trainer.save_checkpoint`` inside ``at_iterate``."""

    def __init__(self, trainer):
        self.trainer, self.save = trainer, trainer.save_checkpoint

    def __call__(self, *args, **kwargs):
        if not self.trainer.optimizers:
            return self.save(*args, **kwargs)
        with at_iterate(self.trainer.optimizers):
            return self.save(*args, **kwargs)


def _warn_of_averages(before):
    names = sorted({type(each).__name__ for each in before if isinstance(each, _AVERAGING)})
    if names:
        warnings.warn(
            f"emanest: {' and '.join(names)} may write the average of a fit into the model before "
            "EvalAtIterate writes x over it: make EvalAtIterate the first callback",
            stacklevel=2,
        )


def _eval(trainer):
    # none are there before the first fit
    eval_all(find_all(trainer.optimizers) if trainer.optimizers else [])
