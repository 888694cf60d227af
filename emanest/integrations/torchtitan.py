# SPDX-License-Identifier: MIT
"""torchtitan: a container whose optimizers are those of this library, by name."""

from dataclasses import dataclass

from ..optimizers import OPTIMIZERS

try:
    from torchtitan.components.optimizer import (  # pyright: ignore[reportMissingImports]
        OptimizersContainer,
    )
except ImportError as error:
    raise ImportError(
        "emanest.integrations.torchtitan needs torchtitan and what its optimizers import: "
        "pip install 'emanest[torchtitan]'"
    ) from error


class Optimizers(OptimizersContainer):
    """torchtitan's ``OptimizersContainer``, which knows the optimizers of this library.

        optimizer = Optimizers.Config(param_groups=[ParamGroupConfig(...), ...])

    ``optimizer_name`` is the name of a class of this library ("AdamW", "Muon", ...), or one that
    torchtitan knows; "AdamW" is ours. ``optimizer_kwargs`` are entries of a group, ``lookahead`` by
    its name among them, so that plain values describe all of it. torchtitan's ``implementation``
    changes nothing about optimizers of this library: their state is float32 in any.

    torchtitan knows no modes: validate inside ``with emanest.at_iterate(optimizers):``.

    Raises:
        NotImplementedError: ``optimizer_name`` is unknown.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """``OptimizersContainer.Config``, which builds this container."""

    @staticmethod
    def _resolve_optimizer_factory(name):
        ours = {cls.__name__: cls for cls in OPTIMIZERS.values()}
        return ours.get(name) or OptimizersContainer._resolve_optimizer_factory(name)
