"""Train a small byte-level transformer on real text, with and without a lookahead.

    python examples/lm.py                     one run: AdamW with EMA-Nesterov
    python examples/lm.py --compare           the same beside plain AdamW at two lrs
    python examples/lm.py --sweep-lr          both over a grid of lrs
    python examples/lm.py --lookahead snoo --corpus ~/notes

Writes ``lm.md`` (table), ``lm.png`` (curves) and ``lm.json`` (everything) into ``--out``. Losses
are nats per byte. A repeated run gives the same losses on a CPU with the same ``--threads``; on a
GPU, sums whose order varies may change the last digits.
"""

import argparse
import dataclasses
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import torch

import corpus
import emanest
import lm_report
from training import Run, lr_factor, train
from transformer import HEADS, make_model

SWEEP = (0.25, 0.5, 1.0, 2.0)
# lr of AdamW beside Muon, relative to Muon's
ADAMW_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Base:
    """A base optimizer: ``make(model, lr, lookahead, **options)`` and the best lr for it here."""

    make: Callable
    lr: float


@dataclasses.dataclass(frozen=True)
class Method:
    """A lookahead method.

    Attributes:
        make: steps of the run -> the method, or None for the base alone.
        gain: method -> how much faster than its base it moves where gradients are steady. The
            base at lr * gain is the control that tells a lookahead from a larger lr.
        options: arguments that the method asks of a base, by the name of the base.
        decays: False if the method stands in for the decay of the lr.
    """

    make: Callable
    gain: Callable = lambda look: 1.0
    options: dict = dataclasses.field(default_factory=dict)
    decays: bool = True


def adamw(model, lr, lookahead, **options):
    return emanest.AdamW(model.parameters(), lr=lr, lookahead=lookahead, **options)


def sgd(model, lr, lookahead, momentum=0.9):
    return emanest.SGD(model.parameters(), lr=lr, momentum=momentum, lookahead=lookahead)


def orthogonal(cls):
    """A base that orthogonalises: matrices to it, the rest to AdamW at a lr in proportion."""

    def make(model, lr, lookahead, adamw=(), **options):
        # queries, keys and values are three matrices
        rest = {"lr": lr * ADAMW_SHARE, **dict(adamw)}
        groups = emanest.split_params(model, {"qkv": {"split": 3}}, adamw=rest, verbose=False)
        return cls(groups, lr=lr, weight_decay=0.01, lookahead=lookahead, **options)

    return make


def ema_nesterov(steps):
    # the paper's stepsize and window; its decay of 0.99 suits runs of 2,500 steps and more
    warmup = steps // 4
    rest = max(warmup + 1, steps * 4 // 5)
    return emanest.EMANesterov(stepsize=0.5, decay=0.98, warmup=warmup, rest=rest)


# lr: the best on a grid of factors of 2, at the default size and length; sgd diverges at 1.6
BASES = {
    "adamw": Base(adamw, lr=6e-3),
    "sgd": Base(sgd, lr=0.8),
    "muon": Base(orthogonal(emanest.Muon), lr=0.02),
    "normuon": Base(orthogonal(emanest.NorMuon), lr=0.04),
}
# without momentum, which Schedule-Free brings along
PLAIN_ADAMW = {"betas": (0.0, 0.999)}
PLAIN_MUON = {"momentum": 0.0, "nesterov": False, "adamw": PLAIN_ADAMW}
LOOKAHEADS = {
    "none": Method(lambda steps: None),
    "ema-nesterov": Method(ema_nesterov, gain=lambda look: 1 / (1 - look.stepsize)),
    # less than the usual 0.9: the bases here have momentum of their own
    "nag": Method(
        lambda steps: emanest.NAG(momentum=0.5), gain=lambda look: 1 / (1 - look.momentum)
    ),
    # the settings of the papers and, for SNOO, of the modded-nanogpt record
    "lookahead": Method(
        lambda steps: emanest.Lookahead(every=5, alpha=0.5), gain=lambda look: look.alpha
    ),
    "long-horizon": Method(
        lambda steps: emanest.LongHorizon(every=10, stepsize=0.5),
        gain=lambda look: 1 / (1 - look.stepsize),
    ),
    "snoo": Method(
        lambda steps: emanest.SNOO(every=28, lr=0.68, momentum=0.37),
        gain=lambda look: look.lr / (1 - look.momentum),
    ),
    "gpa": Method(lambda steps: emanest.GPA(mu_x=0.9869, mu_y=0.7)),
    "schedule-free": Method(
        lambda steps: emanest.ScheduleFree(momentum=0.9),
        options={
            "adamw": PLAIN_ADAMW,
            "sgd": {"momentum": 0.0},
            "muon": PLAIN_MUON,
            "normuon": PLAIN_MUON,
        },
        decays=False,
    ),
    "nala": Method(
        lambda steps: emanest.NALA(every=5, lr=1e-3, mu=-0.5), gain=lambda look: 1 + look.mu
    ),
}


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
    lookahead = LOOKAHEADS[method].make(args.steps)
    options = LOOKAHEADS[method].options.get(base, {})
    decays = LOOKAHEADS[method].decays
    optimizer = BASES[base].make(model, lr, lookahead, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, args.steps, decays)
    )
    name = base if lookahead is None else f"{base} + {method}"
    return Run(name, lr, lookahead, model, optimizer, schedule)


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
