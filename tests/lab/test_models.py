"""The lab's models: sizes, initial weights, causality, and two steps of training each."""

import pathlib
import sys

import pytest
import torch
import torch.nn.functional as F

import emanest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from examples.lab.models import MODELS, ModelError, layers, make
from examples.lab.models.vision import HalvingPool

IMAGES = [name for name, row in MODELS.items() if "shape" in row.small]
TEXTS = [name for name in MODELS if name not in IMAGES]


def small(name, seed=0):
    return make({"name": name, **MODELS[name].small}, seed)


def batch(name, size=8):
    """Of a model in its small form: inputs and targets."""
    options = MODELS[name].small
    if name in IMAGES:
        return torch.randn(size, *options["shape"]), torch.randint(options["classes"], (size,))
    tokens = torch.randint(options["vocabulary"], (size, 9))
    return tokens[:, :-1], tokens[:, 1:]


def loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())


# ---- sizes --------------------------------------------------------------------------------------

# of AlexNet for 32 x 32: a weight for each input and one more, times the outputs
CONVOLUTIONS = 109 * 96 + 865 * 256 + 2305 * 384 + 3457 * 384 + 3457 * 256

# those of GPT-2 and Llama as published, of LeNet-5, of TensorFlow's
# tutorial network and of ResNet-18 for CIFAR as others report them
PARAMETERS = [
    ({"name": "gpt2", "vocabulary": 50_257}, 124_439_808),
    ({"name": "gpt2"}, 124_475_904),
    ({"name": "nanogpt_124m"}, 12 * 12 * 768**2 + 50_257 * 768),
    ({"name": "nanogpt_162m"}, 162_354_816),
    ({"name": "llama_60m"}, 58_073_600),
    ({"name": "llama_130m"}, 134_105_856),
    ({"name": "llama_350m"}, 367_969_280),
    ({"name": "llama_1b"}, 1_339_082_752),
    ({"name": "lenet5"}, 61_706),
    ({"name": "wide_lenet5"}, 1_068_298),
    ({"name": "alexnet"}, CONVOLUTIONS + 2305 * 4096 + 4097 * 4096 + 4097 * 10),
    (
        {"name": "alexnet", "dense": [4096, 4096, 1000]},
        CONVOLUTIONS + 2305 * 4096 + 4097 * 4096 + 4097 * 1000 + 1001 * 10,
    ),
    ({"name": "resnet18"}, 11_173_962),
]


@pytest.mark.parametrize(("settings", "count"), PARAMETERS, ids=lambda v: str(v)[:40])
def test_models_have_the_published_number_of_parameters(settings, count):
    with torch.device("meta"):
        model = make(settings, 0)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("sides", [(12, 12), (13, 17), (28, 28), (31, 32), (40, 15)])
@pytest.mark.parametrize("name", IMAGES)
def test_networks_take_images_of_any_shape(name, sides):
    shape = (2, *sides)
    model = make({"name": name, **MODELS[name].small, "shape": list(shape), "classes": 7}, 0)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("name", TEXTS)
def test_language_models_give_a_logit_for_each_token(name):
    inputs, _ = batch(name)
    assert small(name)(inputs[:, :5]).shape == (8, 5, MODELS[name].small["vocabulary"])


# ---- initial weights ----------------------------------------------------------------------------


def weights(model):
    return [t.clone() for t in model.state_dict().values()]


def equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_seed_alone(name):
    before = torch.get_rng_state()
    one = weights(small(name, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert equal(weights(small(name, 1)), one)
    assert not equal(weights(small(name, 2)), one)


def deviations(model):
    return {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}


def test_matrices_begin_with_the_deviations_of_their_papers():
    options = {"layers": 2, "heads": 2, "width": 96, "vocabulary": 200}
    gpt2 = deviations(make({"name": "gpt2", **options}, 0))
    llama = deviations(make({"name": "llama_60m", **options, "hidden": 100}, 0))
    benchmark = deviations(make({"name": "nanogpt_162m", **options}, 0))
    for found, part, std in [
        (gpt2, "up.weight", 0.02),
        (gpt2, "position.weight", 0.02),
        (gpt2, "down.weight", 0.01),
        (gpt2, "proj.weight", 0.01),
        (llama, "down.weight", 0.02),
        (llama, "head.weight", 0.02),
        (benchmark, "embed.weight", 1.0),
        (benchmark, "q.weight", (0.33 / 96) ** 0.5),
        (benchmark, "up.weight", (0.33 / 96) ** 0.5),
        (benchmark, "down.weight", 0.0),
        (benchmark, "head.weight", 0.0),
    ]:
        values = [value for name, value in found.items() if name.endswith(part)]
        assert values == pytest.approx([std] * len(values), rel=0.05), part
        assert values


def test_an_std_is_given_to_the_weights_of_those_that_take_one():
    for name in ("bytes", "alexnet"):
        model = make({"name": name, **MODELS[name].small, "std": 0.01}, 0)
        assert max(p.std() for p in model.parameters() if p.ndim > 1) < 0.02


# ---- what they compute --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_no_token_sees_a_later_one(name):
    inputs, targets = batch(name)
    model = small(name)
    # the benchmark's begins with logits of zero
    step(emanest.AdamW(model.parameters(), lr=1e-2), model, inputs, targets, 2)
    changed = inputs.clone()
    changed[:, 5] = (changed[:, 5] + 1) % MODELS[name].small["vocabulary"]
    with torch.no_grad():
        moved = (model(inputs) - model(changed)).abs().amax((0, 2))
    assert moved[:5].tolist() == [0] * 5
    assert (moved[5:] > 1e-6).all()


@pytest.mark.parametrize("name", [name for name in TEXTS if "1b" not in name])
def test_the_order_of_tokens_counts(name):
    """Positions are learned, or turn queries and keys."""
    model = small(name)
    inputs, targets = batch(name)
    step(emanest.AdamW(model.parameters(), lr=1e-2), model, inputs, targets, 3)
    swapped = inputs[:, [1, 0, *range(2, 8)]]
    with torch.no_grad():
        assert ((model(inputs) - model(swapped))[:, -1].abs().amax(1) > 1e-5).any()


def test_rotary_positions_turn_pairs_as_complex_numbers():
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    rates = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turns = torch.polar(torch.ones(6, 4).double(), torch.outer(torch.arange(6).double(), rates))
    expected = torch.complex(x[..., :4], x[..., 4:]) * turns[None, :, None]
    found = layers.rotate(x, layers.frequencies)
    expected = torch.cat((expected.real, expected.imag), -1)
    # angles are float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_of_the_benchmarks_pairs_do_not_turn():
    x = torch.randn(2, 6, 3, 8)
    found = layers.rotate(x, layers.half_of_frequencies)
    still, turned = [2, 3, 6, 7], [0, 1, 4, 5]
    assert torch.equal(found[..., still], x[..., still])
    assert (found[:, 1:, :, turned] != x[:, 1:, :, turned]).any(-1).all()


def test_rotary_positions_keep_their_precision_in_a_rounded_model():
    x = torch.randn(1, 300, 1, 8)
    found = layers.rotate(x.bfloat16(), layers.frequencies)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), layers.rotate(x, layers.frequencies), rtol=0.02, atol=0.02
    )


def test_logits_of_the_benchmark_stay_within_15():
    model = small("nanogpt_162m")
    with torch.no_grad():
        model.head.weight.normal_(std=100.0)
        logits = model(batch("nanogpt_162m")[0])
    assert 14 < logits.abs().max() <= 15


@pytest.mark.parametrize("side", [1, 2, 5, 6, 23, 24])
def test_pools_that_halve_have_the_margins_of_tensorflow(side):
    """By TensorFlow's rule for 'SAME': what does not divide evenly goes to the end."""
    row = torch.randn(side)
    places = -(-side // 2)
    margin = max((places - 1) * 2 + 3 - side, 0)
    windows = [range(2 * i - margin // 2, 2 * i - margin // 2 + 3) for i in range(places)]
    expected = [max(row[j].item() for j in window if 0 <= j < side) for window in windows]
    images = row.expand(1, 1, side, side)
    assert HalvingPool()(images)[0, 0, 0].tolist() == expected
    assert HalvingPool()(images.mT)[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("options", [{}, {"activation": "tanh"}, {"pool": "average"}])
def test_lenet_is_that_of_1998_by_options(options):
    """Layer by layer, from the weights."""
    model = make({"name": "lenet5", **options}, 0)
    active = torch.tanh if options.get("activation") == "tanh" else torch.relu
    pool = F.avg_pool2d if options.get("pool") == "average" else F.max_pool2d
    a, b, c, d, e, f, g, h, i, j = model.parameters()
    x = torch.randn(2, 1, 28, 28)
    y = pool(active(F.conv2d(x, a, b, padding=2)), 2)
    y = pool(active(F.conv2d(y, c, d)), 2).flatten(1)
    y = active(F.linear(active(F.linear(y, e, f)), g, h))
    assert torch.equal(model(x), F.linear(y, i, j))


# ---- training -----------------------------------------------------------------------------------


def step(optimizer, model, inputs, targets, steps):
    """Losses before each step, and after the last."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, inputs, targets)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return [*losses, loss(model, inputs, targets).item()]


def adamw(model):
    return emanest.AdamW(model.parameters(), lr=3e-3, lookahead=emanest.EMANesterov())


def muon(model):
    groups = emanest.split_params(model, model.split_rules, verbose=False, adamw={"lr": 3e-3})
    return emanest.Muon(groups, lr=0.02, lookahead=emanest.EMANesterov())


@pytest.mark.parametrize("make_optimizer", [adamw, muon])
@pytest.mark.parametrize("name", MODELS)
def test_two_steps_lower_the_loss_of_a_batch(name, make_optimizer):
    model = small(name)
    losses = step(make_optimizer(model), model, *batch(name, 16), 2)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("name", TEXTS)
def test_all_weights_are_trained_and_matrices_of_blocks_by_muon(name):
    model = small(name)
    groups = emanest.split_params(model, model.split_rules, verbose=False)
    inner = {n for g in groups if g.get("base") != "adamw" for n, _ in g["params"]}
    assert inner == {
        n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2
    }
    assert {n for g in groups if g.get("split") == 3 for n, _ in g["params"]} == {
        n for n in inner if "qkv" in n
    }
    step(emanest.Muon(groups, lr=0.01), model, *batch(name), 2)
    loss(model, *batch(name)).backward()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_all_but_ends_and_norms(name):
    """What FSDP2 shards one by one: in the full form nearly all of what is not an embedding."""
    with torch.device("meta"):
        model = make({"name": name}, 0)
    count = lambda modules: sum(p.numel() for m in modules for p in m.parameters())  # noqa: E731
    ends = [getattr(model, part) for part in ("embed", "position", "head") if hasattr(model, part)]
    assert count(model.blocks) + count(ends) > 0.999 * count([model])
    assert len(model.blocks) > 1


def test_batch_norms_of_resnet_can_be_those_of_x():
    model = small("resnet18")
    assert model.statistics
    optimizer = emanest.AdamW(model.parameters(), lr=0.05, lookahead=emanest.EMANesterov())
    inputs, targets = batch("resnet18", 16)
    step(optimizer, model, inputs, targets, 20)
    emanest.update_bn([inputs], model, optimizer)
    with optimizer.at_iterate(), torch.no_grad():
        first = model.norm.running_mean.clone()
        torch.testing.assert_close(first, model.conv(inputs).mean((0, 2, 3)))


def test_only_resnet_collects_statistics():
    buffers = {name for name in MODELS if list(small(name).buffers())}
    assert buffers == {name for name in MODELS if getattr(small(name), "statistics", False)}


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "gpt3"}, ["'gpt3'", "gpt2", "lenet5"]),
        ({}, ["None", "gpt2"]),
        ({"name": ["gpt2"]}, ["['gpt2']", "gpt2"]),
        ({"name": "gpt2", "depth": 3}, ["gpt2", "'depth'", "layers"]),
        ({"name": "llama_1b", "context": 3}, ["llama_1b", "'context'", "hidden"]),
        ({"name": "bytes", "layers": 0}, ["layers", "at least 1", "0"]),
        ({"name": "gpt2", "context": 2.0}, ["context", "whole number", "2.0"]),
        ({"name": "llama_60m", "vocabulary": True}, ["vocabulary", "whole number", "True"]),
        ({"name": "bytes", "width": 30}, ["width", "multiple of heads=4", "30"]),
        ({"name": "nanogpt_124m", "width": 36}, ["width", "multiple of 2 * heads=24", "36"]),
        ({"name": "nanogpt_162m", "width": 30}, ["width", "multiple of 4 * heads=24", "30"]),
        ({"name": "bytes", "std": 0}, ["std", "positive", "0"]),
        ({"name": "alexnet", "std": "big"}, ["std", "positive", "'big'"]),
        ({"name": "lenet5", "pool": "min"}, ["pool", "max, average", "'min'"]),
        ({"name": "lenet5", "activation": []}, ["activation", "relu, tanh", "[]"]),
        ({"name": "lenet5", "shape": [1, 28]}, ["shape", "3 sizes", "[1, 28]"]),
        ({"name": "lenet5", "shape": [1, 11, 28]}, ["shape", "at least 12", "[1, 11, 28]"]),
        ({"name": "resnet18", "shape": [3, 0, 32]}, ["shape[1]", "at least 1", "0"]),
        ({"name": "resnet18", "classes": -1}, ["classes", "at least 1", "-1"]),
        ({"name": "wide_lenet5", "dense": [3]}, ["dense", "2 sizes", "[3]"]),
        ({"name": "alexnet", "channels": [1, 2]}, ["channels", "5 sizes", "[1, 2]"]),
        ({"name": "alexnet", "dense": []}, ["dense", "one or more sizes", "[]"]),
    ],
)
def test_what_cannot_be_made_is_an_error_of_one_line(settings, words):
    with pytest.raises(ModelError) as error:
        make(settings, 0)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
