# SPDX-License-Identifier: MIT
"""One hash for each way to train: the guard of changes that may change no bit.

    PYTHONPATH=. python tests/digest.py --out before.txt         (before, and again after)

Every row trains tiny parameters for 20 steps (``digest_runs``), with all that a run can meet in
between, and hashes what a user sees after each: parameters, state, groups, metrics, warnings. Only
public names are used, so that the same script runs before and after modules move. Hashes hold for
one machine and one torch; a row that raises is a row too. On one thread, in about a minute.
"""

import argparse
import hashlib
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import torch

import emanest
from digest_runs import ROWS


class Digest:
    """A hash of values by name, in the order in which they are given."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, name, value):
        """Take in numbers, strings, tensors with their strides, and dicts and lists of such."""
        if isinstance(value, dict):
            self._text(name, "dict", len(value))
            for key in sorted(value, key=repr):
                self.add(f"{name}/{key!r}", value[key])
        elif isinstance(value, (list, tuple)):
            self._text(name, type(value).__name__, len(value))
            for i, each in enumerate(value):
                self.add(f"{name}/{i}", each)
        elif isinstance(value, torch.Tensor):
            self._text(name, value.dtype, tuple(value.shape), value.stride())
            self._hash.update(_bytes(value))
        elif callable(value):
            self._text(name, "callable")
        else:
            assert value is None or isinstance(value, (bool, int, float, complex, str)), value
            self._text(name, type(value).__name__, repr(value))

    def _text(self, *parts):
        self._hash.update("\0".join(map(str, parts)).encode() + b"\0")

    def hexdigest(self):
        return self._hash.hexdigest()[:24]


def _bytes(tensor):
    whole = tensor.detach().resolve_conj().resolve_neg()
    whole = torch.view_as_real(whole) if whole.is_complex() else whole
    whole = whole.clone(memory_format=torch.contiguous_format)
    return whole.flatten().view(torch.uint8).numpy().tobytes()


def digest_of(row):
    """The hash of a row, and what it raised, if anything."""
    digest, raised = Digest(), ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row(digest.add)
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error}"
            digest.add("raised", raised)
    ours = [str(w.message) for w in caught if str(w.message).startswith("emanest: ")]
    digest.add("warnings", ours)
    return digest.hexdigest(), raised


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the lines here, too")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--rows", action="store_true", help="list the rows, run none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # a choice of the environment's would stand above that of the rows
    os.environ.pop("EMANEST_BACKEND", None)
    chosen = {name: row for name, row in ROWS.items() if options.only in name}
    if not chosen:
        parser.error(f"--only={options.only!r} is in no row's name; --rows lists them")
    if options.rows:
        print(*chosen, sep="\n")
        return
    began, total = time.process_time(), hashlib.sha256()
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [f"# torch {torch.__version__}, {platform.machine()}, {capability}"]
    print(f"emanest of {Path(emanest.__file__).parent}", file=sys.stderr)
    for name, row in chosen.items():
        found, raised = digest_of(row)
        lines.append(f"{name:<52} {found}  {' '.join(raised.split())[:200]}".rstrip())
        total.update(lines[-1].encode())
    lines.append(f"{f'total of {len(chosen)} rows':<52} {total.hexdigest()[:24]}")
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    print(f"{time.process_time() - began:.0f} s of CPU time", file=sys.stderr)


if __name__ == "__main__":
    main()
