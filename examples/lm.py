"""Train a small byte-level transformer on real text, with and without a lookahead.

    python examples/lm.py                     one run: AdamW with EMA-Nesterov
    python examples/lm.py --compare           the same beside plain AdamW at two lrs
    python examples/lm.py --sweep-lr          both over a grid of lrs
    python examples/lm.py --lookahead snoo --corpus ~/notes

Edits ``lm.md`` (table), ``lm.png`` (curves) and ``lm.json`` (everything) into ``--out``. Losses
are nats per byte. A repeated run gives the same losses on a CPU with the same ``--threads``; on a
GPU, sums whose order varies may change the last digits.
"""

import argparse
import math
import pathlib
import sys
import tempfile
import time

import torch

import corpus
import lm_report
import methods
from methods import BASES, LOOKAHEADS
from training import train
from transformer import HEADS, make_model

SWEEP = (0.25, 0.5, 1.0, 2.0)


def one(args):
    """One run."""
    return [(args.base, args.lookahead, args.lr)]


def compare(args):
    """The base, the method at the same lr, and the base at the lr that the gain suggests."""
    method = LOOKAHEADS[args.lookahead]
    gain = method.gain(method.make(args.steps))
    control = [(args.base, "none", args.lr * gain)] if gain != 1 else []
    return [(args.base, "none", args.lr), *one(args), *control]


def sweep(args):
    """The base with and without the method, from a quarter of the lr to twice the lr."""
    lrs = [args.lr * factor for factor in SWEEP]
    return [(args.base, method, lr) for lr in lrs for method in ("none", args.lookahead)]


def make_run(args, base, method, lr):
    """One run; all runs of a command start from the same weights."""
    model = make_model(args.layers, args.width, args.context, args.seed, args.device)
    return methods.make_run(model, base, method, lr, args.steps, args.device)


class Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, least, wanted, most=sys.float_info.max):
    """An argument type: a ``kind`` from ``least`` to ``most``; ``wanted`` says so in words."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return convert


def device(name):
    """An argument type: a device that can compute here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(f"{name} cannot be used ({reason}); try cpu") from error
    return torch.device(name)


def parse(argv):
    """The settings of a command line; exits with status 2 on one that cannot run."""
    count = number(int, 1, "a whole number of at least 1")
    steps = number(int, 2, "a whole number of at least 2")
    seed = number(int, 0, "a whole number below 2**63", most=2**63 - 1)
    positive = number(float, sys.float_info.min, "a positive number")
    parser = Parser(prog="lm.py", description=__doc__.split("\n")[0])
    plan = parser.add_mutually_exclusive_group()
    for name, function in (("--compare", compare), ("--sweep-lr", sweep)):
        keep = {"dest": "plan", "action": "store_const", "const": function, "default": one}
        plan.add_argument(name, **keep, help=function.__doc__)
    given = " (default: %(default)s)"
    add = parser.add_argument
    add("--base", choices=BASES, default="adamw", help="base optimizer" + given)
    add("--lookahead", choices=LOOKAHEADS, default="ema-nesterov", help="method" + given)
    add("--lr", type=positive, help="peak learning rate (default: the best of a sweep, by base)")
    add("--steps", type=steps, default=2000, help="optimizer steps" + given)
    add("--corpus", help="folder of text files (default: Python's standard library)")
    add("--seed", type=seed, default=0, help="of initial weights and batches" + given)
    add("--device", type=device, default="cpu", help="any torch device" + given)
    # a second thread saves a quarter on idle cores and loses more than that on busy ones
    add("--threads", type=count, default=1, help="one suits a model this small" + given)
    add("--layers", type=count, default=2, help="of the model" + given)
    add("--width", type=count, default=64, help=f"of the model, a multiple of {HEADS}" + given)
    add("--context", type=count, default=48, help="bytes the model sees" + given)
    add("--batch", type=count, default=16, help="windows per step" + given)
    add("--out", type=pathlib.Path, default="build/lm", help="folder to write into" + given)
    args = parser.parse_args(argv)
    args.lr = args.lr or BASES[args.base].lr
    if args.width % HEADS:
        parser.error(f"argument --width: {args.width} is not a multiple of {HEADS}, the heads")
    if args.plan is not one and args.lookahead == "none":
        parser.error("argument --lookahead: none leaves nothing to compare; name a method")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"argument --out: {args.out}: {error.strerror}; name a folder to write into")
    try:
        args.text = corpus.from_folder(args.corpus) if args.corpus else corpus.standard_library()
        corpus.check_length(args.text, args.context)
    except corpus.CorpusError as error:
        parser.error(f"argument --corpus: {error}")
    return args


def main(argv=None):
    """Run the command line ``argv``; returns the exit status."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    runs = [make_run(args, *row) for row in args.plan(args)]
    print(lm_report.heading(args, runs), flush=True)
    begin = time.perf_counter()
    train(
        runs,
        args.text,
        steps=args.steps,
        batch=args.batch,
        context=args.context,
        seed=args.seed,
        device=args.device,
    )
    lm_report.write(args, runs, seconds=time.perf_counter() - begin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
