# SPDX-License-Identifier: MIT
"""From settings to an optimizer with its lookahead, and a scheduler of its learning rate."""

import functools

import torch

import emanest
from emanest.methods.method import METHODS

from .schedules import SCHEDULES
from .settings import SettingsError, take


def of_all(cls):
    """An optimizer of all parameters alike."""

    def make(model, lookahead, **options):
        return cls(model.parameters(), lookahead=lookahead, **options)

    return make


def of_matrices(cls):
    """An optimizer of hidden matrices; ``adamw`` has the options of the rest.

    ``rules`` are those of ``emanest.split_params``, before the model's own.
    """

    def make(model, lookahead, adamw=(), rules=None, **options):
        rules = {**(rules or {}), **getattr(model, "split_rules", {})}
        groups = emanest.split_params(model, rules, adamw=dict(adamw), verbose=False)
        return cls(groups, lookahead=lookahead, **options)

    return make


def of_torch(cls):
    """One of torch's own, with a lookahead around it."""

    def make(model, lookahead, **options):
        return emanest.Wrap(cls(model.parameters(), **options), lookahead)

    return make


OPTIMIZERS = {
    "adamw": of_all(emanest.AdamW),
    "sgd": of_all(emanest.SGD),
    "muon": of_matrices(emanest.Muon),
    "normuon": of_matrices(emanest.NorMuon),
    "aurora": of_matrices(emanest.Aurora),
    "soap": of_matrices(emanest.SOAP),
    "torch.RAdam": of_torch(torch.optim.RAdam),
    "torch.Adagrad": of_torch(torch.optim.Adagrad),
    "torch.RMSprop": of_torch(torch.optim.RMSprop),
}


def optimizer(settings, model):
    """The optimizer of a run."""
    make, options = take(OPTIMIZERS, settings["optimizer"], "optimizer")
    lookahead = settings.get("lookahead")
    if lookahead is not None:
        method, values = take(METHODS, lookahead, "lookahead")
        lookahead = method(**values)
    try:
        return make(model, lookahead, **options)
    except TypeError as error:
        raise SettingsError(f"optimizer {settings['optimizer']['name']}: {error}") from error


def scheduler(settings, optimizer):
    """The scheduler of a run, stepped once a step."""
    schedule, options = take(SCHEDULES, settings["schedule"], "schedule")
    factor = functools.partial(schedule, steps=settings["steps"], **options)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
