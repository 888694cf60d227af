"""Hugging Face Trainer: evaluate, save and end at x."""

import warnings
from typing import Any

from ..tools.find import eval_all, find_all

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


# without transformers, pyright takes this file for it
class EvalAtIterate(TrainerCallback):  # pyright: ignore[reportGeneralTypeIssues]
    """Have ``transformers.Trainer`` save the model at x, and end with the model at x.

        Trainer(..., callbacks=[EvalAtIterate()])        the last of them, if others decide to save

    The Trainer itself goes to x for evaluation and prediction, and back to y, bit for bit, before
    it trains on; but it saves, and ends, wherever it happens to be. This goes to x at the end of a
    step after which it will save, at the end of each epoch (so before ``load_best_model_at_end``
    loads x), and at the end of training. The optimizer's state in a checkpoint then holds y: a run
    resumes from it bit for bit.

    After an exception the model is left as it is: ``emanest.find(trainer).eval()``.

    Raises:
        TypeError: as training begins, if the Trainer's optimizer is none of this library.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """See that there is an optimizer to act on."""
        find_all(optimizer)

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
