# SPDX-License-Identifier: MIT
"""The lab's models: sizes, initial weights, two steps of training each, and errors."""

import pytest
import torch
from small_models import MODELS, batch, loss, make, small, step

import emanest
from examples.lab.models import ModelError, compile_blocks

# of AlexNet for 32 x 32: a weight for each input and one more, times the outputs
CONVOLUTIONS = 109 * 96 + 865 * 256 + 2305 * 384 + 3457 * 384 + 3457 * 256

# those of GPT-2 and Llama as published, of LeNet-5, of TensorFlow's tutorial network and of
# ResNet-18 for CIFAR as others report them
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


def test_an_std_is_given_to_the_weights_of_those_that_take_one():
    for name in ("bytes", "alexnet"):
        model = make({"name": name, **MODELS[name].small, "std": 0.01}, 0)
        assert max(p.std() for p in model.parameters() if p.ndim > 1) < 0.02


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


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_all_but_ends_and_norms(name):
    """What FSDP2 shards one by one: in the full form nearly all of what is not an embedding."""
    with torch.device("meta"):
        model = make({"name": name}, 0)
    count = lambda modules: sum(p.numel() for m in modules for p in m.parameters())  # noqa: E731
    ends = [getattr(model, part) for part in ("embed", "position", "head") if hasattr(model, part)]
    assert count(model.blocks) + count(ends) > 0.999 * count([model])
    assert len(model.blocks) > 1


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


@pytest.mark.parametrize(
    ("std", "embedded", "added"), [(None, 1.0, 64**-0.5 / 3**0.5), (0.1, 0.1, 0.05)]
)
def test_weights_of_bytes_start_from_what_was_asked_for(std, embedded, added):
    """By default as PyTorch's do; what is added to the residual stream by the number of blocks."""
    model = make({"name": "bytes", "layers": 2, "width": 64, "context": 16, "std": std}, 0)
    block = model.blocks[1]
    assert model.embed.weight.std().item() == pytest.approx(embedded, rel=0.05)
    assert block.proj.weight.std().item() == pytest.approx(added, rel=0.05)
    assert torch.equal(block.norm1.weight, torch.ones(64))


# dynamo hides it, which does not help where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_are_compiled_once_and_compute_the_same():
    counters = torch._dynamo.utils.counters["stats"]
    plain, compiled = (make({"name": "bytes", "layers": 3, "width": 16}, 0) for _ in range(2))
    compile_blocks(compiled, backend="eager", dynamic=False)
    before = counters["unique_graphs"]
    inputs = torch.randint(256, (3, 12))
    for model in (plain, compiled):
        loss(model, inputs, inputs).backward()
        with torch.no_grad():
            model.eval()(inputs)
    # one to train, one to evaluate
    assert counters["unique_graphs"] - before == 2
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
