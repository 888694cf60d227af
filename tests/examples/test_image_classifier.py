# SPDX-License-Identifier: MIT
"""examples/image_classifier.py, shrunk: it learns, and is evaluated with the statistics of x."""

import pytest
import torch

from examples import image_classifier
from examples.image_classifier import OPTIMIZERS, Settings, made_up, main, pictures, train
from examples.lab.data import DataError
from helpers import bits

IMAGES = made_up(size=12, classes=4, noise=40, count=(256, 64))
SMALL = {"width": 4, "batch": 32, "steps": 30, "every": 30, "statistics": 4}


def run(optimizer, **changes):
    return train(Settings(**{**SMALL, "optimizer": optimizer, **changes}), IMAGES)


def weights(model):
    return {name: bits(p) for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_learns(optimizer):
    _, _, curve = run(optimizer)
    ((step, loss, accuracy),) = curve
    assert step == 30
    assert loss < 0.5
    assert accuracy > 0.9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_evaluations_change_no_bit_of_the_weights(optimizer):
    often, _, curve = run(optimizer, every=5)
    once, _, last = run(optimizer)
    assert weights(often) == weights(once)
    assert len(curve) == 6
    assert curve[-1:] == last


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_statistics_are_those_of_x(optimizer, monkeypatch):
    """Of the first layer, whose inputs are the pictures themselves."""
    seen = []
    evaluate = image_classifier.evaluate

    def check(model, opt, some, held_out):
        found = evaluate(model, opt, some, held_out)
        with torch.no_grad():
            at_y = torch.stack([model[0](x).mean((0, 2, 3)) for x, _ in some]).mean(0)
            with opt.at_iterate():
                at_x = torch.stack([model[0](x).mean((0, 2, 3)) for x, _ in some]).mean(0)
        seen.append((model[1].running_mean.clone(), at_x, at_y))
        return found

    monkeypatch.setattr(image_classifier, "evaluate", check)
    run(optimizer, every=20)
    mean, at_x, at_y = seen[0]  # of step 20; at the end EMA-Nesterov rests
    assert torch.allclose(mean, at_x, atol=1e-6)
    assert not torch.allclose(mean, at_y, atol=1e-5)


def test_onecycle_cycles_the_first_beta_and_no_momentum_under_nag():
    model = torch.nn.Linear(2, 2)
    momenta = {}
    for name, make in OPTIMIZERS.items():
        opt, schedule = make(model, 10)
        taken = []
        for _ in range(9):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            opt.step()
            schedule.step()
            (group,) = opt.param_groups
            taken.append(group["betas"][0] if name == "adamw" else group["momentum"])
        momenta[name] = min(taken), max(taken)
    assert momenta["sgd"] == (0, 0)
    assert momenta["adamw"] == pytest.approx((0.85, 0.95))


def test_where_fashion_mnist_is_missing_pictures_are_made_up(monkeypatch, capsys):
    def missing():
        raise DataError("Fashion-MNIST is not here")

    monkeypatch.setattr(image_classifier, "fashion_mnist", missing)
    monkeypatch.setattr(image_classifier, "made_up", lambda: IMAGES)
    assert pictures() is IMAGES
    main(["--steps", "2", "--width", "2", "--statistics", "1"])
    first, *_, name, last = capsys.readouterr().out.splitlines()
    assert first == "made-up pictures, since Fashion-MNIST is not here"
    assert name == "made-up pictures: 256 pictures to train on"
    assert last.startswith("step 2: loss at x ")
