# SPDX-License-Identifier: MIT
"""A run of the lab: what it depends on, what it keeps, and that an interruption changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from shrunk import small
from torch.utils._python_dispatch import TorchDispatchMode

from examples.lab.experiments import EXPERIMENTS
from examples.lab.parallel import ParallelError
from examples.lab.runner import do
from examples.lab.settings import SettingsError, key, merged
from examples.lab.training import Run

pytestmark = pytest.mark.usefixtures("made_up", "one_thread")

INTERRUPTED = [
    ("byte_lm", "AdamW"),
    ("byte_lm", "AdamW + EMA-Nesterov"),
    ("byte_lm", "AdamW + SNOO"),
    ("byte_lm", "AdamW + Schedule-Free"),
    ("byte_lm", "Muon + EMA-Nesterov"),
    ("byte_lm_more", "SOAP + EMA-Nesterov"),
    ("loss_along", "AdamW + EMA-Nesterov"),
    ("fashion_mnist", "Adam + NALA"),
    ("nala_resnet18_cifar10", "Adam + EMA-Nesterov"),
]
NOTHING = Path("nothing")  # no run has stood still
BYTES = EXPERIMENTS["byte_lm"].arms[0].settings
AHEAD = EXPERIMENTS["byte_lm"].arms[1].settings
# as few steps want it
FAST = merged(
    AHEAD, {"optimizer": {"lr": 0.03}, "schedule": {"name": "cosine"}, "lookahead": {"decay": 0.5}}
)


class After:
    """True when it has been asked so many times."""

    def __init__(self, count):
        self.left = count

    def __bool__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("experiment", "label"), INTERRUPTED)
def test_an_interrupted_run_gives_the_same_line(experiment, label, tmp_path):
    arm = next(arm for arm in EXPERIMENTS[experiment].arms if arm.label == label)
    # SNOO's first sync is the 25th step
    settings, path = small(arm.settings, steps=30), tmp_path / "run.pt"
    whole = do(settings, path).result()
    assert not path.exists()
    for count in (3, 16):
        assert not do(settings, path, stop=After(count)).done
    assert json.dumps(do(settings, path).result()) == json.dumps(whole)


def unlike():
    """One arm of each kind, by the model: those of a sweep are alike but for their numbers."""
    found = {}
    for experiment in EXPERIMENTS.values():
        for arm in experiment.arms:
            settings = small(arm.settings)
            kind = settings["optimizer"]["name"], (settings.get("lookahead") or {}).get("name")
            found.setdefault(settings["model"]["name"], {})[kind] = settings
    return {model: list(kinds.values()) for model, kinds in found.items()}


@pytest.mark.parametrize(("model", "kinds"), unlike().items(), ids=unlike())
def test_every_kind_of_arm_takes_two_steps(model, kinds):
    for settings in kinds:
        result = do(settings, NOTHING).result()
        assert result["steps"] == [0, 1, 2]
        assert result["diverged"] is None
        assert None not in result["loss"]


def test_training_lowers_the_loss():
    result = do(small(FAST, steps=60, batch=16), NOTHING).result()
    assert result["loss"][-1] < 0.8 * result["loss"][0]
    assert result["train"][-1] < result["train"][0]


def test_images_have_an_accuracy():
    settings = small(EXPERIMENTS["fashion_mnist"].arms[2].settings, steps=60, batch=16)
    result = do({**settings, "validation": {"count": None, "batch": 5}}, NOTHING).result()
    assert result["accuracy"][-1] > 0.6 > result["accuracy"][0]


def test_the_seed_decides_the_result():
    settings = small(AHEAD, steps=4)
    first, again, other = (do({**settings, "seed": seed}, NOTHING).result() for seed in (1, 1, 2))
    assert first == again
    assert first["loss"] != other["loss"]


def test_small_parts_of_a_batch_are_the_batch():
    settings = small(BYTES, steps=6, batch=8)
    whole = do(settings, NOTHING).result()
    parts = do({**settings, "micro": 3}, NOTHING).result()
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert parts["train"] == pytest.approx(whole["train"], rel=1e-4)


def test_the_loss_is_that_of_x():
    run = Run(small(FAST, steps=8))
    for _ in range(5):
        run.advance()
    at_y = run.measured()["loss"]
    run._evaluate()
    with run.optimizer.at_iterate():
        at_x = run.measured()["loss"]
    assert run.curves["loss"][-1] == pytest.approx(at_x, rel=1e-5)
    assert at_x != pytest.approx(at_y, rel=1e-5)


def test_a_probe_changes_nothing():
    probed = small(EXPERIMENTS["loss_along"].arms[0].settings, steps=8)
    plain = {k: v for k, v in probed.items() if k != "probe"}
    found, expected = (do(s, NOTHING).result() for s in (probed, plain))
    assert found["loss"] == expected["loss"]
    for each in found["probes"]:
        at_zero = found["loss"][found["steps"].index(each["step"])]
        assert each["average"][1] == each["last step"][1] == at_zero
        assert len(set(each["average"] + each["last step"])) == 5


def test_where_a_probed_run_stands_is_json_after_an_evaluation():
    # as several processes save it
    run = Run(small(EXPERIMENTS["loss_along"].arms[0].settings, steps=4))
    while len(run.curves["probes"]) < 1:
        run.advance()
    assert json.loads(json.dumps(run.progress())) == run.progress()


def test_a_probe_of_sharded_weights_is_refused():
    settings = small(EXPERIMENTS["loss_along"].arms[0].settings)
    with pytest.raises(ParallelError, match="probe: not with how='fsdp2'"):
        Run(settings, how="fsdp2")


def test_text_of_more_tokens_than_the_model_has_says_so():
    settings = small(merged(BYTES, {"model": {"name": "llama_60m"}}))
    settings["model"]["vocabulary"] = 31
    with pytest.raises(SettingsError, match="llama_60m has a vocabulary of 31, and made up one"):
        Run(settings)


def test_a_run_that_diverges_says_when_and_stops():
    settings = small(merged(BYTES, {"optimizer": {"lr": 1e38}}), steps=20)
    result = do({**settings, "evaluations": 5}, NOTHING).result()
    assert result["diverged"] <= 4
    assert result["loss"][-1] is None
    json.dumps(result, allow_nan=False)


class Reads(TorchDispatchMode):
    """Counts how often the host waits for a value."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_its_loss():
    run = Run(small(AHEAD, steps=8))
    with Reads() as reads:
        run.take_step()
        run.take_step()
    assert reads.count == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"momentum": 1}, ["momentum", "model"]),
        ({"optimizer": None}, ["optimizer"]),
        ({"optimizer": {"name": "adagrad", "lr": 1}}, ["optimizer", "adagrad", "adamw"]),
        ({"optimizer": {"name": "adamw", "lr": 1, "betaz": 1}}, ["adamw", "betaz"]),
        ({"lookahead": {"name": "polyak"}}, ["lookahead", "polyak", "ema_nesterov"]),
        ({"schedule": {"name": "sine"}}, ["schedule", "sine", "cosine"]),
        ({"steps": 0}, ["steps=0", "at least 1"]),
        ({"evaluations": 1.5}, ["evaluations=1.5", "at least 1"]),
    ],
)
def test_settings_that_cannot_be_say_so(changes, words):
    settings = {**small(BYTES), **changes}
    settings = {name: value for name, value in settings.items() if value is not None}
    with pytest.raises(SettingsError) as error:
        Run(settings)
    for word in words:
        assert word in str(error.value)


def test_a_key_does_not_depend_on_the_order_of_entries():
    settings = small(AHEAD)
    assert key(settings) == key(dict(reversed(settings.items())))
    assert key(settings) != key({**settings, "seed": 1})


def test_another_row_takes_the_place_of_all_options():
    settings = {"optimizer": {"name": "muon", "lr": 1, "adamw": {"lr": 2, "eps": 3}}, "steps": 4}
    assert merged(settings, {"optimizer": {"lr": 5, "adamw": {"lr": 6}}}) == {
        "optimizer": {"name": "muon", "lr": 5, "adamw": {"lr": 6, "eps": 3}},
        "steps": 4,
    }
    assert merged(settings, {"optimizer": {"name": "sgd"}})["optimizer"] == {"name": "sgd"}
