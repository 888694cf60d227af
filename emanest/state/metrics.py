# SPDX-License-Identifier: MIT
"""What a run can tell about its lookahead, computed when it is asked for."""

import torch

from ..backends import shards
from ..methods.method import NO_LOOKAHEAD
from .modes import by_ahead, x_of


@torch.no_grad()
def metrics(optimizer, skips) -> dict[str, torch.Tensor]:
    """See ``Optimizer.metrics``."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    device = params[0].device if params else torch.device("cpu")
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for part in optimizer.with_state():
        found = torch.stack(
            [_squares(its, i, ahead) for its, ahead in by_ahead([part]) for i in its.indices]
        )
        sums += shards.total(found, part.bucket.params_of(part.indices)).to(device)
    x, m, displacement = sums.sqrt().unbind()
    return {
        "x_norm": x,
        "m_norm": m,
        "displacement_norm": displacement,
        "m_ratio": m / x,
        "displacement_ratio": displacement / x,
        "skipped_steps": skips.total(device),
    }


def _squares(part, i, ahead):
    """Sums of squares of a parameter's x, m and y - x."""
    bucket, method = part.bucket, part.method
    x = y = bucket.tensors[i].detach()
    lies_ahead = ahead != 0 and method is not NO_LOOKAHEAD
    if lies_ahead and part.group["train_mode"]:
        x = x_of(y, part, i, ahead)
    elif lies_ahead:
        aside = bucket.kept_y(i)
        y = x if aside is None else aside
    m = x.new_zeros(0)
    if method.along:
        m = shards.local(bucket.views[method.state[0]][i])
    wide = torch.complex128 if x.is_complex() else torch.float64
    each = x, m, y.to(wide) - x.to(wide)
    return torch.stack([torch.linalg.vector_norm(t, dtype=wide).square() for t in each])
