# SPDX-License-Identifier: MIT
"""The settings of a run: a dictionary as JSON has it, from which everything else follows."""

import hashlib
import json

# entry -> whether a run can do without it
ENTRIES = {
    "data": False,  # name of a row of data.DATA, and its options
    "model": False,  # name of a row of models.MODELS, and its options
    "feed": False,  # how batches are drawn: batch, and context of text or augment of images
    "validation": False,  # count and batch of what is evaluated, and context of text
    "optimizer": False,  # name of a row of building.OPTIMIZERS, lr, and further arguments
    "lookahead": True,  # name of a method as groups have it, and its settings
    "schedule": False,  # name of a row of schedules.SCHEDULES, and its options
    "steps": False,  # of the optimizer
    "evaluations": False,  # on the way, the last one at the end
    "seed": False,  # of the first weights and of the batches
    "micro": True,  # rows of a forward pass, where a batch is too large for one
    "autocast": True,  # dtype of products
    "clip": True,  # norm that gradients are clipped to
    "probe": True,  # evaluations and stepsizes at which the loss along directions is taken
}


class SettingsError(ValueError):
    """Settings from which no run can be made; the message names the entry and the way out."""


def checked(settings):
    """The settings in the form that JSON gives back, or a SettingsError."""
    unknown = sorted(set(settings) - set(ENTRIES))
    missing = [name for name, optional in ENTRIES.items() if not optional and name not in settings]
    if unknown:
        raise SettingsError(
            f"settings have no entry {unknown[0]!r}; there are {', '.join(ENTRIES)}"
        )
    if missing:
        raise SettingsError(f"settings lack {', '.join(missing)}; every run says them")
    for name in ("steps", "evaluations"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise SettingsError(f"{name}={settings[name]!r}: a whole number of at least 1")
    return json.loads(json.dumps(settings))


def key(settings):
    """Sixteen digits that name the settings, whatever the order of their entries."""
    text = json.dumps(checked(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merged(settings, *changes):
    """The settings with the changes laid over them; dictionaries are laid over entry by entry.

    A change that names another row (``name``) of the same entry takes the place of all of it.
    """
    result = dict(settings)
    for change in changes:
        for name, value in change.items():
            old = result.get(name)
            both = isinstance(value, dict) and isinstance(old, dict)
            same = both and value.get("name", old.get("name")) == old.get("name")
            result[name] = merged(old, value) if same else value
    return result


def take(table, settings, entry, error=SettingsError):
    """The row of ``table`` that the settings name, and the options beside the name."""
    name = settings.get("name")
    if name not in table:
        raise error(f"{entry}: there is no {name!r}; choose from {', '.join(table)}")
    return table[name], {k: v for k, v in settings.items() if k != "name"}
