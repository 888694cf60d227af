"""The options of a parameter group: a row says how each is checked."""

import inspect

from .matrix.coefficients import check_coefficients
from .matrix.newton_schulz import check_dtype, check_form
from .matrix.shapes import SCALES
from .values import betas, by, choice, count, flag, learning_rate, optional, real


def _at_least_zero(torch_words):
    def check(name, value):
        try:
            return real(name, value, 0)
        except ValueError as error:
            raise ValueError(f"Invalid {torch_words} value: {value} ({error})") from None

    return check


# option -> check(name, value) -> value; options without a row are kept as they are, as in torch
CHECKS = {
    "lr": learning_rate,
    "betas": betas,
    "eps": _at_least_zero("epsilon"),
    "weight_decay": _at_least_zero("weight_decay"),
    "momentum": _at_least_zero("momentum"),
    "dampening": real,
    "nesterov": flag,
    "amsgrad": flag,
    "maximize": flag,
    "capturable": flag,
    "differentiable": flag,
    "foreach": by(optional, flag),
    "fused": by(optional, flag),
    "nonfinite": by(choice, ("propagate", "skip", "raise")),
    "adjust_lr_fn": by(choice, (None, *SCALES)),
    "ns_coefficients": check_coefficients,
    "ns_steps": count,
    "ns_form": check_form,
    "ns_dtype": check_dtype,
    "split": count,
    "stack": by(optional, flag),
    "beta2": by(real, 0, 1, "[)"),
}

# options that are sequences of numbers, and kept as tuples
SEQUENCES = ("betas", "ns_coefficients")

# (condition on a whole group, error, message): what no single option shows
CONFLICTS = (
    (
        lambda group: group.get("fused") and group.get("differentiable"),
        RuntimeError,
        "`fused` does not support `differentiable`",
    ),
    (
        lambda group: group.get("fused") and group.get("foreach"),
        RuntimeError,
        "`fused` and `foreach` cannot be `True` together.",
    ),
    (
        lambda group: (
            group.get("nesterov")
            and "dampening" in group
            and (group["momentum"] == 0 or group["dampening"] != 0)
        ),
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    (
        lambda group: "ns_steps" in group and group["momentum"] >= 1,
        ValueError,
        "Muon averages gradients with weight 1 - momentum: momentum must be below 1",
    ),
    (
        lambda group: (group.get("ns_form"), group.get("ns_dtype")) == ("gram", "bfloat16"),
        ValueError,
        "ns_form='gram' loses all digits in bfloat16: take ns_dtype='float16' or 'float32'",
    ),
    (
        lambda group: "beta2" in group and group["eps"] == 0,
        ValueError,
        "NorMuon divides rows of zeros by eps: it must be above 0",
    ),
    (
        lambda group: group.get("differentiable"),
        ValueError,
        "differentiable=True is not supported: the step is not recorded by autograd",
    ),
)


def options_of(arguments):
    """The options among the arguments of an optimizer's constructor, its ``locals()``."""
    others = {"self", "params", "lookahead", "__class__"}
    return {k: v for k, v in arguments.items() if k not in others}


def own_options(optimizer):
    """What a class of optimizers takes between ``params`` and ``lookahead``, with defaults."""
    parameters = dict(inspect.signature(optimizer).parameters)
    names = [*parameters]
    own = names[names.index("params") + 1 : names.index("lookahead")]
    return {name: parameters[name].default for name in own}


def check_group(group):
    """Return the checked options of a group; unknown keys are kept.

    Raises:
        TypeError, ValueError, RuntimeError: an option is of the wrong kind, out of range, or
            contradicts another; the message names it.
    """
    group = {k: CHECKS[k](k, v) if k in CHECKS else v for k, v in group.items()}
    for contradicts, error, message in CONFLICTS:
        if contradicts(group):
            raise error(message)
    return group
