# SPDX-License-Identifier: MIT
# where transformers is not installed, pyright takes this file for it
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
"""Hugging Face Trainer: optimizers by name; evaluate, save and end at x."""

import warnings
from typing import Any

from ..tools.create import create
from ..tools.find import eval_all, find_all
from ..tools.windows import fit_windows, warn_of_windows
from ..values import flag

try:
    from transformers import (  # pyright: ignore[reportMissingImports]
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
except ImportError as error:
    raise ImportError(
        "emanest.integrations.transformers needs transformers and accelerate: "
        "pip install 'emanest[hf]'"
    ) from error


# Any: the Trainer takes a factory, and annotates a class alone
def factory(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An optimizer by its name, for ``transformers.Trainer``, which makes it as training begins.

        Trainer(..., optimizer_cls_and_kwargs=factory("muon+ema_nesterov", lr=2e-2))

    The Trainer gives it the model, so that Muon gets the groups of ``split_params``. Rates and
    decays are those given here: the Trainer's scheduler scales each group's own rate, and
    ``learning_rate``, ``weight_decay`` and ``optim`` of ``TrainingArguments`` are not looked at.

    Args:
        name: as in ``emanest.create``: ``"adamw"``, ``"muon+ema_nesterov"``.
        options: of ``emanest.create``, ``lr`` among them; of ``total_steps`` the Trainer knows more
            when it begins, see ``EvalAtIterate(fit_windows=True)``.

    Returns:
        The pair that ``optimizer_cls_and_kwargs`` takes: what the Trainer calls a factory, and its
        arguments.

    Raises:
        TypeError, ValueError: as ``emanest.create``, when the Trainer makes the optimizer.
    """
    return _make, {"name": name, **options}


def _make() -> Any:
    # the Trainer calls what this returns with the model and the arguments
    return create


class EvalAtIterate(TrainerCallback):
    """Have ``transformers.Trainer`` save the model at x, and end with the model at x.

        Trainer(..., callbacks=[EvalAtIterate()])        the last of them, if others decide to save

    The Trainer itself goes to x for evaluation and prediction, and back to y, bit for bit, before
    it trains on; but it saves, and ends, wherever it happens to be. This goes to x at the end of a
    step after which it will save, at the end of each epoch (so before ``load_best_model_at_end``
    loads x), and at the end of training. The optimizer's state in a checkpoint then holds y: a run
    resumes from it bit for bit.

    As training begins it warns of lookaheads that will never begin, or never rest, in the run, or
    that rest for the whole of it, as in a second one with the same optimizer.

    After an exception the model is left as it is: ``emanest.find(trainer).eval()``.

    Args:
        fit_windows: give lookaheads the published windows of a run of that length, except where
            theirs are not the defaults; a run that is resumed keeps those of its checkpoint.

    Raises:
        TypeError: as training begins, if the Trainer's optimizer is none of this library.
    """

    def __init__(self, fit_windows: bool = False) -> None:
        super().__init__()
        self.fit_windows: bool = flag("fit_windows", fit_windows)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """See that there is an optimizer to act on, and that its windows are in the run."""
        if self.fit_windows:
            fit_windows(optimizer, state.max_steps, state.global_step)
        warn_of_windows(optimizer, state.max_steps, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Go to x if the Trainer is about to save; nothing in it is called just before that."""
        if control.should_save:
            _eval(optimizer)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Go to x; the next training step brings back y."""
        _eval(optimizer)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Warn of a model that was saved at y because a later callback had decided to save."""
        if any(each.param_groups[0]["train_mode"] for each in find_all(optimizer)):
            warnings.warn(
                f"emanest: the model of checkpoint {state.global_step} was saved at y, not at x: "
                "make EvalAtIterate the last callback, after those that set control.should_save",
                stacklevel=2,
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Leave the model at x."""
        _eval(optimizer)


def _eval(optimizer):
    eval_all(find_all(optimizer))
