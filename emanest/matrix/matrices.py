"""The matrices that some parameters are, in batches of one size."""

import itertools
import math

from .. import backends
from ..backends import capture
from ..backends.per_tensor import PerTensor
from .shapes import Shape, is_stack


class Matrices:
    """The matrices of parameters that are stepped together.

    Attributes:
        batches: pairs of a size, (rows, columns), and the ``Shape`` of each kind of parameter that
            has matrices of it.
        shapes: those of all batches.

    Args:
        joint: the parameters.

    Raises:
        ValueError: an option does not fit a parameter, or its state.
    """

    # options that say what matrices a parameter is
    LAYOUT = "stack", "split"

    def __init__(self, joint):
        self.joint, self.bucket, self.group = joint, joint.first, joint.parts[0].group
        self.batches = self.kept("matrices", self.LAYOUT, self._batches)
        for part in joint.parts:
            # another base of the group's may have left state of its own
            part.bucket.check_kinds(part.indices, part.group, part.base.state)
        self.shapes = [shape for _, shapes in self.batches for shape in shapes]
        owners = [[joint.owners[i]] * s.per_param for s in self.shapes for i in s.params]
        self._owners = [*itertools.chain.from_iterable(owners)]

    def kept(self, what, options, find):
        """What does not change with the step: found once for these options of the groups."""
        key = what, *(tuple(map(part.group.get, options)) for part in self.joint.parts)
        memo = self.joint.memo
        if key not in memo:
            what = "no step had these shapes and scales so far"
            capture.need_warm_up(self.bucket.device.type, what)
            memo[key] = find()
        return memo[key]

    def tensors(self):
        """What matrices are made of: the parameters, of a ``DTensor`` the part that lies here."""
        return [part.bucket.tensors[i] for part in self.joint.parts for i in part.indices]

    def owners(self):
        """For each parameter its part."""
        return [part for part in self.joint.parts for _ in part.indices]

    def _batches(self):
        together = {}
        for i, (p, part) in enumerate(zip(self.tensors(), self.owners(), strict=True)):
            part.base.check("a parameter", p, part.group)
            shape = shape_of(p, part.group)
            together.setdefault((shape.rows, shape.columns), {}).setdefault(shape, []).append(i)
        return [
            (size, [shape._replace(params=params) for shape, params in alike.items()])
            for size, alike in together.items()
        ]

    def of_matrices(self, numbers):
        """The numbers of parameters as those of their matrices."""
        if not isinstance(numbers, PerTensor):
            return numbers
        return PerTensor(numbers.values, self._owners)

    def matrices(self, tensors):
        """The matrices of tensors that are shaped like the parameters, or like rows of them."""
        return [m for s in self.shapes for m in s.cut([tensors[i] for i in s.params])]

    def call(self, function, *args, **options):
        """Call a function of the back end."""
        args = self.bucket.device.type, self.joint.backend, *args, self.bucket.dtype
        backends.call(function, *args, **options, memo=self.joint.memo)


def shape_of(p, group):
    """The ``Shape`` of a parameter, not yet of any."""
    stack, split = map(group.get, Matrices.LAYOUT)
    first = 1 if is_stack(p, stack) else 0
    rows, *row = p.shape[first:] or (1,)
    # a vector is no matrices below each other
    split = split if p.dim() > 1 else 1
    return Shape(rows // split, math.prod(row), tuple(p.shape[:first]), split, tuple(row))
