# SPDX-License-Identifier: MIT
"""Images: NALA's tables (Zuo et al. 2024), and one of them at the size of two cores."""

from ..settings import merged
from .sweep import Arm, Experiment, Stage

EPOCH = 60_000 // 256  # of Fashion-MNIST, in steps
# settings of the authors' code: batches of 256, lr halved every 20 epochs, 45,000 steps
COMMON = {
    "feed": {"batch": 256},
    "validation": {"count": None, "batch": 500},
    "evaluations": 45,
    "steps": 45_000,
    "schedule": {"name": "stairs", "every": 20 * 50_000 // 256},
}
SGD = {"optimizer": {"name": "sgd", "lr": 0.1}}


def adam(lr):
    return {"optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.0}}


def arms(common, lr, steps, published=None):
    """The optimizers that the paper compares, and EMA-Nesterov on Adam.

    Args:
        lr: of Adam; that of SGD is 0.1.
        published: figures beside which a report sets those of an arm, by its label.
    """
    lookaheads = {
        "Lookahead": {"name": "lookahead", "every": 5, "alpha": 0.5},
        "NALA": {"name": "nala", "every": 5, "lr": 1e-3, "mu": -0.5},
        "EMA-Nesterov": {
            **{"name": "ema_nesterov", "stepsize": 0.5, "decay": 0.99},
            **{"warmup": round(0.3 * steps), "rest": round(0.8 * steps)},
        },
    }
    # 0.1 is the momentum of their code
    nag = {"optimizer": {**SGD["optimizer"], "momentum": 0.1, "nesterov": True}}
    plain = {"SGD": SGD, "NAG": nag, "Adam": adam(lr)}
    rows = {label: (each, None, None) for label, each in plain.items()}
    rows |= {f"Adam + {k}": (adam(lr), look, "Adam") for k, look in lookaheads.items()}
    return tuple(
        Arm(
            label,
            merged(common, settings, {"lookahead": lookahead}),
            against,
            {"base": "Adam", "published": (published or {}).get(label)},
        )
        for label, (settings, lookahead, against) in rows.items()
    )


# the figures of the paper that we know
PUBLISHED = {
    "LeNet-5 on CIFAR-10": {"Adam": 0.9414, "Adam + Lookahead": 0.9297, "Adam + NALA": 0.9453}
}
OF_TRAINING = (
    "The published accuracies are those of training batches, as the authors' code computes them; "
    "ours are of the test set. Their images are cut to 24 x 24 and distorted; ours are whole, with "
    "flips and shifts where the data is CIFAR."
)
# network of the paper -> model, lr of Adam
NETWORKS = {
    "LeNet-5": ("wide_lenet5", 1e-3),
    "AlexNet": ("alexnet", 1e-3),
    "ResNet-18": ("resnet18", 2e-4),
}
DATA = {
    "Fashion-MNIST": ({"name": "fashion_mnist"}, (1, 28, 28), 10, ()),
    "CIFAR-10": ({"name": "cifar10"}, (3, 32, 32), 10, ("flip", "crop")),
    "CIFAR-100": ({"name": "cifar100"}, (3, 32, 32), 100, ("flip", "crop")),
}


def table(network, images):
    """One of the nine tables: a network on a data set."""
    model, lr = NETWORKS[network]
    data, shape, classes, augment = DATA[images]
    common = merged(
        COMMON,
        {
            "data": data,
            "model": {"name": model, "shape": list(shape), "classes": classes},
            "feed": {"augment": list(augment)},
        },
    )
    title = f"{network} on {images}"
    return Experiment(
        name=f"nala_{model}_{data['name']}",
        question=f"Does NALA lead on {title}?",
        arms=arms(common, lr, common["steps"], PUBLISHED.get(title)),
        stages=(Stage((0, 1)),),
        report="classes",
        source="Zuo et al. 2024, one of tables 1 to 9",
        note=OF_TRAINING,
        size="one GPU",
    )


SHORT = merged(
    COMMON,
    {
        "data": {"name": "fashion_mnist"},
        "model": {"name": "lenet5"},
        "steps": 10 * EPOCH,
        "evaluations": 10,
        # a tenth of 20 epochs would be two: as many halvings as in the paper's 192 epochs
        "schedule": {"name": "stairs", "every": EPOCH},
    },
)
FASHION_MNIST = Experiment(
    name="fashion_mnist",
    question="Does a lookahead help LeNet-5 on Fashion-MNIST?",
    arms=arms(SHORT, 1e-3, SHORT["steps"]),
    stages=(Stage((0, 1)),),
    report="classes",
    source="Zuo et al. 2024, at 10 epochs in place of 192",
    note=(
        "What was published for Fashion-MNIST was not at hand; of LeNet-5 on CIFAR-10 it is an "
        "accuracy of 0.9414 with Adam, 0.9297 with Lookahead and 0.9453 with NALA. That is another "
        "data set, another network (two convolutions of 64 channels and dense layers of 384 and "
        "192; this one has 61,706 parameters), 45,000 steps in place of 2,340, with as many "
        "halvings of the learning rate, images that are distorted, and the accuracy of training "
        "batches, where ours is that of the test set. Two seeds, as published; the learning rates "
        "are the published ones, and not searched."
    ),
)
EXPERIMENTS = [FASHION_MNIST] + [table(n, d) for n in NETWORKS for d in DATA]
