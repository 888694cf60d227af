# SPDX-License-Identifier: MIT
"""The matrices that some parameters are, in batches of one size."""

import itertools
from typing import Any

import torch

from .. import backends
from ..backends import capture
from ..backends.per_tensor import PerTensor
from .shapes import shapes_of


class Matrices:
    """The matrices of parameters that are stepped together.

    Attributes:
        batches: pairs of a size, (rows, columns), and the ``Shape`` of each kind of parameter that
            has matrices of it.
        shapes: those of all batches.
        blocks: for each of them its parameters: pairs of a shape and a parameter's place.
        layouts: for each parameter its shapes, from the first row to the last; usually one.

    Args:
        joint: the parameters.

    Raises:
        ValueError: an option does not fit a parameter, or its state.
    """

    # options that say what matrices a parameter is
    LAYOUT = "stack", "split"

    def __init__(self, joint):
        self.joint, self.bucket, self.group = joint, joint.first, joint.parts[0].group
        self.batches, self.layouts = self.kept("matrices", self.LAYOUT, self._batches)
        for part in joint.parts:
            # another base of the group's may have left state of its own
            part.bucket.check_kinds(part.indices, part.group, part.base.state)
        self.shapes = [shape for _, shapes in self.batches for shape in shapes]
        self.blocks = [(shape, i) for shape in self.shapes for i in shape.params]
        self._several = [i for i, shapes in enumerate(self.layouts) if len(shapes) > 1]
        owners = [[joint.owners[i]] * shape.per_param for shape, i in self.blocks]
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
        together, layouts = {}, []
        for i, (p, part) in enumerate(zip(self.tensors(), self.owners(), strict=True)):
            part.base.check("a parameter", p, part.group)
            layouts.append(shapes_of(p, part.group))
            for shape in layouts[-1]:
                together.setdefault((shape.rows, shape.columns), {}).setdefault(shape, []).append(i)
        batches = [
            (size, [shape._replace(params=params) for shape, params in alike.items()])
            for size, alike in together.items()
        ]
        return batches, layouts

    def wholes(self, pieces, vectors=False):
        """For each parameter one tensor, put together where it has several shapes.

        Args:
            pieces: for each of ``blocks`` a tensor of its rows; or a vector of values for them.
            vectors: whether they are vectors; so is the result then.
        """
        found: list[Any] = [None] * len(self.layouts)
        cut = {}
        for (shape, i), piece in zip(self.blocks, pieces, strict=True):
            if shape.start is None:
                found[i] = piece
            else:
                cut[i, shape.start] = piece
        for i in self._several:
            shapes = self.layouts[i]
            stack, its = shapes[0].stack, [cut[i, s.start] for s in shapes]
            if vectors:
                # with their lengths: a stack may be empty
                its = [t.view(*stack, s.split * s.rows) for t, s in zip(its, shapes, strict=True)]
            whole = torch.cat(its, len(stack))
            found[i] = whole.flatten() if vectors else whole
        return found

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
