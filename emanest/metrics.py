"""What a run can tell about its lookahead, computed when it is asked for."""

import torch

from . import capture, shards
from .lookahead import method_of
from .points import x_of


class Skips:
    """How many steps did not happen; those that only a device knows of are counted there."""

    def __init__(self):
        self._host, self._on_device = 0, {}

    def add(self, happens, flag):
        """Count a step, by what ``verdict.verdict`` says of it."""
        if flag is not None:
            held = self._on_device
            if flag.device not in held:
                capture.need_warm_up(flag.device.type, "no step left its flag on the device so far")
                held[flag.device] = torch.zeros((), dtype=torch.int64, device=flag.device)
            # in place, where a captured graph finds it
            held[flag.device] += (flag.reshape(()) != 0).to(torch.int64)
        elif not happens:
            self._host += 1

    def total(self, device):
        """Their number, a 0-d int64 tensor."""
        counts = [each.to(device) for each in self._on_device.values()]
        return torch.tensor(self._host, device=device) + sum(counts)


@torch.no_grad()
def metrics(optimizer, skips):
    """See ``Optimizer.metrics``."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    device = params[0].device if params else torch.device("cpu")
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for group in optimizer.param_groups:
        for bucket, indices in optimizer.housed(group).items():
            found = torch.stack(
                [_squares(group, bucket, *each) for each in _placed(bucket, indices)]
            )
            sums += shards.total(found, bucket.owners(indices)).to(device)
    x, m, displacement = sums.sqrt().unbind()
    return {
        "x_norm": x,
        "m_norm": m,
        "displacement_norm": displacement,
        "m_ratio": m / x,
        "displacement_ratio": displacement / x,
        "skipped_steps": skips.total(device),
    }


def _placed(bucket, indices):
    for b, same in bucket.scalars.ahead(indices).items():
        for i in same:
            yield i, b


def _squares(group, bucket, i, b):
    """Sums of squares of a parameter's x, m and y - x."""
    method, here = method_of(group), bucket.tensors[i]
    x = y = here.detach()
    if b != 0 and method is not None and group["train_mode"]:
        x = x_of(y, group, method, bucket, i, b)
    elif b != 0 and method is not None:
        aside = bucket.aside(i)
        y = x if aside is None else aside
    along = method is not None and method.along
    m = bucket.views[method.state[0]][i] if method is not None and along else x.new_zeros(0)
    wide = torch.complex128 if x.is_complex() else torch.float64
    each = x, m, y.to(wide) - x.to(wide)
    return torch.stack([torch.linalg.vector_norm(t, dtype=wide).square() for t in each])
