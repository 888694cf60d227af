# SPDX-License-Identifier: MIT
"""A lookahead that joins a run in its middle gets the windows of what is left of the run."""

from types import SimpleNamespace

import pytest

import emanest
import runs
from emanest.integrations import lightning, transformers


def begin_transformers(optimizer, total, done):
    state = SimpleNamespace(max_steps=total, global_step=done)
    callback = transformers.EvalAtIterate(fit_windows=True)
    callback.on_train_begin(None, state, None, optimizer=optimizer)


def begin_lightning(optimizer, total, done):
    trainer = SimpleNamespace(
        optimizers=[optimizer], estimated_stepping_batches=total, global_step=done
    )
    module = SimpleNamespace(automatic_optimization=True)
    lightning.EvalAtIterate(fit_windows=True).on_train_start(trainer, module)


@pytest.mark.parametrize("begin", [begin_transformers, begin_lightning])
def test_windows_are_those_of_what_is_left(begin):
    optimizer = emanest.AdamW(runs.make_model().parameters(), lookahead="ema_nesterov")
    begin(optimizer, 100, 50)
    (group,) = optimizer.param_groups
    assert (group["lookahead_warmup"], group["lookahead_rest"]) == (15, 40)


@pytest.mark.parametrize("begin", [begin_transformers, begin_lightning])
def test_what_is_left_is_what_a_window_must_be_in(begin):
    lookahead = emanest.EMANesterov(warmup=60, rest=90)
    optimizer = emanest.AdamW(runs.make_model().parameters(), lookahead=lookahead)
    with pytest.warns(UserWarning, match="never looks ahead in a run of 50 steps"):
        begin(optimizer, 100, 50)
