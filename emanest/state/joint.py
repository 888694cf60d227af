# SPDX-License-Identifier: MIT
"""What a back end is given in one call: parameters of one part, or of several that go together."""

import functools
import itertools
import operator
from typing import Any, NamedTuple

from .. import backends
from ..backends.per_tensor import PerTensor
from ..rules import PASSES
from .bucket import Bucket


class Part(NamedTuple):
    """The parameters of a group that lie in one bucket, all of them or some."""

    group: dict[str, Any]
    method: Any  # a Method
    base: Any  # an ``optimizers.base.Base``
    bucket: Bucket
    indices: list[int]  # of the parameters, in the bucket


class Joint:
    """Parameters that share a call of a back end: of parts in buckets of one format.

    Args:
        parts: the parts; their buckets have one ``format``, their groups name one back end.
    """

    def __init__(self, parts):
        self.parts, self.first = parts, parts[0].bucket
        self.backend = parts[0].group.get("backend")
        self.params = self._joined(lambda b, i: b.params_of(i))
        # for each parameter the place of its part
        self.owners = [k for k, part in enumerate(parts) for _ in part.indices]
        # whether gradients are what back ends take
        self._plain = all(part.bucket.plain for part in parts)
        self._given: dict[Any, tuple] = {}

    def holds(self, parts):
        """Whether these are the parts themselves."""
        return len(parts) == len(self.parts) and all(map(operator.is_, parts, self.parts))

    def some(self, positions):
        """Some of the parameters of a single part."""
        (part,) = self.parts
        return Joint([part._replace(indices=[part.indices[k] for k in positions])])

    def per_part(self, numbers):
        """Numbers of each part as those of each parameter."""
        return numbers[0] if len(numbers) == 1 else PerTensor(numbers, self.owners)

    def gradients(self, gradients):
        """The parameters' gradients as back ends take them; ``gradients`` finds them."""
        found = gradients(self.params)
        if self._plain:
            return found
        rest = iter(found)
        return self._joined(lambda b, i: b.gradients_of(i, list(itertools.islice(rest, len(i)))))

    @property
    def snapshots(self):
        """What the parameters held before the step; see ``Edits.take_snapshots``."""
        return self._joined(lambda b, i: b.snapshots_of(i))

    @functools.cached_property
    def memo(self):
        """What back ends keep about these parameters."""
        sets = [(part.bucket, part.indices) for part in self.parts]
        # the newest has them: the others may outlive it, and would gather those of its successors
        return max((bucket for bucket, _ in sets), key=lambda bucket: bucket.number).memo(*sets)

    def columns(self, names):
        """For each name the state of the parameters, complex as pairs of reals."""
        return [self._joined(lambda b, i, name=name: b.column(name, i)) for name in names]

    def _joined(self, of):
        if len(self.parts) == 1:
            return of(self.first, self.parts[0].indices)
        return [each for part in self.parts for each in of(part.bucket, part.indices)]

    def _gather(self, key):
        """Parameters and state for a pass, and the memo."""
        name, rules, state = key
        if state is None:
            state = [key for row in PASSES[name].rows(rules) for key in row.state]
        found = self._joined(lambda b, i: b.tensors_of(i)), self.columns(state), self.memo
        # pairs of reals are views, which would not follow a tensor whose memory is replaced
        if not self.first.param_dtype.is_complex:
            self._given[key] = found
        return found

    def apply_(self, name, rules, numbers, inputs=(), state=None, ys=None, **options):
        """Do a pass over the parameters; see ``backends.eager.apply_``.

        Args:
            name, rules, numbers, inputs, options: as there.
            state: the names of its state; None: as the rules have them.
            ys: tensors in place of the parameters.
        """
        key = name, rules, state
        given = self._given.get(key) or self._gather(key)
        ys, memo = (given[0], given[2]) if ys is None else (ys, None)
        where, arguments = (self.first.device.type, self.backend), (name, rules, ys, inputs)
        numbers = given[1], numbers, self.first.dtype
        backends.call("apply_", *where, *arguments, *numbers, **options, memo=memo)
