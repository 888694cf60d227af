# SPDX-License-Identifier: MIT
"""What goes to Muon and what to AdamW, and one optimizer for both."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import emanest
import helpers
from emanest import EMANesterov, Muon, NorMuon, split_params
from helpers import METHODS, bits, content, differing

WIDTH, WORDS = 8, 32


class Block(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, h):
        return h + self.down(F.gelu(self.up(self.norm(h))))


class Model(nn.Module):
    """A language model in small: embedding, blocks, head."""

    def __init__(self, tied=False, head="head"):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.pos = nn.Parameter(torch.randn(4, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.temperature = nn.Parameter(torch.ones(()))
        setattr(self, head, nn.Linear(WIDTH, WORDS, bias=False))
        self.last = head
        if tied:
            getattr(self, head).weight = self.embed.weight

    def forward(self, words):
        h = self.embed(words) + self.pos
        for block in self.blocks:
            h = block(h)
        return getattr(self, self.last)(h) * self.temperature


def kinds(model, rules=None, **options):
    """Parameter -> "muon" or "adamw"."""
    groups = split_params(model, rules, verbose=False, **options)
    return {
        name: "adamw" if g.get("base") == "adamw" else "muon"
        for g in groups
        for name, _ in g["params"]
    }


def reasons(model, capsys, rules=None):
    """Parameter -> (where it goes, why), as printed."""
    split_params(model, rules, verbose="all")
    first, *lines, _ = capsys.readouterr().out.splitlines()
    columns = [first.index(title) for title in ("to", "because")]
    return {
        line.split()[0]: (line[columns[0] : columns[1]].strip(), line[columns[1] :].strip())
        for line in lines
    }


def test_hidden_matrices_go_to_muon_and_nothing_else():
    found = kinds(Model())
    assert {n for n, kind in found.items() if kind == "muon"} == {
        f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("up", "down")
    }
    assert found.keys() == dict(Model().named_parameters()).keys()


class Kinds(nn.Module):
    """A parameter for every row of the table."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 16, 3)
        self.depth = nn.Conv2d(16, 16, 3, groups=16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.experts = nn.Parameter(torch.ones(4, 16, 32))
        self.listed = nn.ParameterList([torch.ones(4, 16, 32)])
        self.bilinear = nn.Bilinear(16, 16, 16, bias=False)
        self.conv1d = nn.Conv1d(16, 16, 3, bias=False)
        self.experts_bias = nn.Parameter(torch.ones(4, 16))
        self.biases = nn.ParameterList([torch.ones(2, 16, 16)])
        self.row = nn.Parameter(torch.ones(1, 9))
        self.phase = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
        self.cls_token = nn.Parameter(torch.ones(4, 16))
        self.bag = nn.EmbeddingBag(WORDS, 16)
        self.shared = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16, bias=False)
        self.again.weight = self.shared.weight
        self.classifier = nn.Linear(16, 10)


def test_the_table_gives_each_reason(capsys):
    assert reasons(Kinds(), capsys) == {
        "frozen": ("-", "frozen"),
        "stem.weight": ("adamw", "input layer"),
        "stem.bias": ("adamw", "vector"),
        "conv.weight": ("muon", "kernel"),
        "conv.bias": ("adamw", "vector"),
        "depth.weight": ("adamw", "depthwise"),
        "depth.bias": ("adamw", "vector"),
        "attention.in_proj_weight": ("muon", "fused: split=3"),
        "attention.in_proj_bias": ("adamw", "vector"),
        "attention.out_proj.weight": ("muon", "matrix"),
        "attention.out_proj.bias": ("adamw", "vector"),
        "experts": ("muon", "experts"),
        "listed.0": ("muon", "experts"),
        "bilinear.weight": ("adamw", "tensor"),
        "conv1d.weight": ("muon", "kernel"),
        "experts_bias": ("adamw", "bias"),
        "biases.0": ("adamw", "bias"),
        "row": ("adamw", "vector"),
        "phase": ("adamw", "complex"),
        "cls_token": ("adamw", "embedding"),
        "bag.weight": ("adamw", "embedding"),
        "shared.weight": ("adamw", "tied"),
        "shared.bias": ("adamw", "vector"),
        "classifier.weight": ("adamw", "output layer"),
        "classifier.bias": ("adamw", "vector"),
    }


def test_every_reason_is_documented():
    table = split_params.__doc__
    for reason, *_ in emanest.tools.parameters.TABLE:
        assert f"\n        {reason} " in table


class VocabularyEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WORDS, 8))


class Named(nn.Module):
    """Parameters that no layer of torch's owns, and several heads."""

    def __init__(self):
        super().__init__()
        self.table = VocabularyEmbedding()
        self.tok_embeddings = nn.Parameter(torch.ones(WORDS, 8))
        self.posembed = nn.Parameter(torch.ones(4, 8))
        self.ensemble_weight = nn.Parameter(torch.ones(4, 8))
        self.proposal = nn.Parameter(torch.ones(4, 8))
        self.own = nn.ParameterDict({"wte": torch.ones(4, 8), "mix": torch.ones(4, 8)})
        self.pos = nn.ParameterList([torch.ones(4, 8)])
        self.heads = nn.ModuleList(nn.Linear(8, 3, bias=False) for _ in range(2))


def test_names_are_read_by_words(capsys):
    assert reasons(Named(), capsys) == {
        "table.weight": ("adamw", "embedding"),
        "tok_embeddings": ("adamw", "embedding"),
        "posembed": ("adamw", "embedding"),
        "ensemble_weight": ("muon", "matrix"),
        "proposal": ("muon", "matrix"),
        "own.wte": ("adamw", "embedding"),
        "own.mix": ("muon", "matrix"),
        "pos.0": ("adamw", "embedding"),
        "heads.0.weight": ("adamw", "output layer"),
        "heads.1.weight": ("adamw", "output layer"),
    }


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_parametrizations_keep_goes_where_the_parameter_would(capsys):
    plain, model = Kinds(), Kinds()
    nn.utils.parametrizations.weight_norm(model.bag)
    nn.utils.parametrizations.weight_norm(model.conv)
    nn.utils.parametrizations.spectral_norm(model.attention, "in_proj_weight")
    nn.utils.parametrizations.weight_norm(model.classifier)
    expected, found = reasons(plain, capsys), reasons(model, capsys)
    for layer, name in (
        ("bag", "weight"),
        ("conv", "weight"),
        ("attention", "in_proj_weight"),
        ("classifier", "weight"),
    ):
        made = {n: to for n, to in found.items() if n.startswith(f"{layer}.parametrizations")}
        assert expected[f"{layer}.{name}"] in made.values()
        assert set(made.values()) <= {expected[f"{layer}.{name}"], ("adamw", "vector")}


def test_the_table_ends_with_totals(capsys):
    split_params(Model())
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "adamw: 10 tensors, 609 values; muon: 4 tensors, 512 values"
    split_params(Model(), verbose=False)
    assert capsys.readouterr().out == ""


def test_tied_weights_occur_once():
    found = kinds(Model(tied=True))
    assert found["embed.weight"] == "adamw"
    assert "head.weight" not in found


@pytest.mark.parametrize(
    ("head", "why"), [("lm_head", "output layer"), ("to_words", "wide, output?")]
)
def test_a_head_is_known_by_name_or_guessed_by_its_width(head, why, capsys):
    assert reasons(Model(head=head), capsys)[f"{head}.weight"] == ("adamw", why)


def test_what_is_in_a_block_is_no_head_however_wide():
    model = Model()
    model.blocks = nn.ModuleList([nn.Linear(WIDTH, WORDS, bias=False)])
    assert kinds(model)["blocks.0.weight"] == "muon"
    twice = nn.Sequential(nn.Embedding(2 * WIDTH, WIDTH), Block(), Block(), nn.Linear(WIDTH, 3))
    assert kinds(twice)["1.up.weight"] == "muon"


def test_wrapped_models_are_split_alike():
    model = Model()
    wrapped = nn.Sequential(model)
    assert kinds(wrapped) == {f"0.{name}": kind for name, kind in kinds(model).items()}


def test_a_plain_stack_of_layers_keeps_its_last_for_adamw():
    found = kinds(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)))
    assert [n for n, kind in found.items() if kind == "muon"] == ["0.weight", "2.weight"]


# ---- rules --------------------------------------------------------------------------------------


def test_rules_come_first_and_in_order(capsys):
    rules = {r"blocks\.1\.up": "adamw", r"blocks\.1": {"lr": 0.5}, "^embed": "muon"}
    found = reasons(Model(), capsys, rules)
    assert found["blocks.1.up.weight"] == ("adamw", r"rule 'blocks\\.1\\.up'")
    assert found["embed.weight"] == ("muon", "rule '^embed'")
    groups = split_params(Model(), {r"blocks\.1\.down": {"lr": 0.5}}, verbose=False)
    assert [(g.get("lr"), [n for n, _ in g["params"]]) for g in groups if "base" not in g] == [
        (None, ["blocks.0.up.weight", "blocks.0.down.weight", "blocks.1.up.weight"]),
        (0.5, ["blocks.1.down.weight"]),
    ]


def test_a_rule_that_names_no_base_leaves_a_parameter_where_it_was():
    rules = {"attention": {"lr": 0.5}, "shared|again": {"lr": 0.25}}
    groups = split_params(Kinds(), rules, verbose=False)
    found = {
        n: {k: v for k, v in g.items() if k != "params"} for g in groups for n, _ in g["params"]
    }
    assert found["attention.in_proj_weight"] == {"stack": False, "split": 3, "lr": 0.5}
    assert found["attention.in_proj_bias"] == {"base": "adamw", "lr": 0.5}
    assert found["shared.weight"] == {"base": "adamw", "lr": 0.25}
    groups = split_params(
        Kinds(), {"in_proj_weight": "adamw", r"shared\.weight": "muon"}, verbose=False
    )
    found = {
        n: {k: v for k, v in g.items() if k != "params"} for g in groups for n, _ in g["params"]
    }
    assert found["attention.in_proj_weight"] == {"base": "adamw"}
    assert found["shared.weight"] == {"stack": False}


def test_a_tied_parameter_is_found_by_any_of_its_names():
    groups = split_params(Model(tied=True), {"head": {"lr": 0.5}}, verbose=False)
    assert [n for g in groups if g.get("lr") for n, _ in g["params"]] == ["embed.weight"]


def test_rates_that_print_alike_are_not_merged():
    rates = [torch.tensor(0.00101), torch.tensor(0.00104)]
    groups = split_params(
        Model(), {r"0\.up": {"lr": rates[0]}, r"1\.up": {"lr": rates[1]}}, verbose=False
    )
    assert [g["lr"] for g in groups if "base" not in g and "lr" in g] == rates


def test_entries_reach_the_groups_of_their_kind():
    rules = {"down": {"split": 2}, "temperature": {"base": "adamw", "lr": 7.0}}
    groups = split_params(Model(), rules, muon={"lr": 0.3}, adamw={"lr": 0.1}, verbose=False)
    entries = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    assert entries == [
        {"stack": False, "lr": 0.3},
        {"stack": False, "lr": 0.3, "split": 2},
        {"lr": 0.1, "base": "adamw"},
        {"lr": 7.0, "base": "adamw"},
    ]


def test_matrices_may_go_to_any_base_of_matrices(capsys):
    model = Model()
    rules = {"down": {"base": "soap", "betas": (0.9, 0.95)}, r"pos": "soap"}
    groups = split_params(model, rules, muon={"base": "normuon"})
    bases = {name: g.get("base") for g in groups for name, _ in g["params"]}
    assert {n: b for n, b in bases.items() if b != "adamw"} == {
        "pos": "soap",
        **{f"blocks.{k}.up.weight": "normuon" for k in range(2)},
        **{f"blocks.{k}.down.weight": "soap" for k in range(2)},
    }
    # what the table knows of a matrix stays with it
    assert all(g["stack"] is False for g in groups if g["base"] != "adamw")
    assert "soap: 3 tensors" in capsys.readouterr().out
    of = {
        g["base"]: g for g in emanest.Muon(groups).param_groups if "blocks" in g["param_names"][0]
    }
    assert (of["soap"]["betas"], of["normuon"]["beta2"]) == ((0.9, 0.95), 0.95)


def test_frozen_parameters_are_nobodys():
    model = Model()
    model.blocks[0].requires_grad_(False)
    assert not any(n.startswith("blocks.0") for n in kinds(model))
    with pytest.raises(ValueError, match=r"rules \['blocks.0'\] find no parameter that requires"):
        split_params(model, {"blocks.0": "muon"})


@pytest.mark.parametrize(
    ("model", "rules", "error", "message"),
    [
        (lambda: 3, None, TypeError, "model must be an nn.Module, got int"),
        (Model, {"nowhere": "muon"}, ValueError, r"rules \['nowhere'\] find no parameter"),
        (Model, {"up": {"lr": 1}, "up.": "adamw"}, ValueError, r"\['up.'\] find no .* has taken"),
        (Model, {"(": "muon"}, ValueError, r"rule '\(' is no regular expression"),
        (Model, {3: "muon"}, ValueError, "rule 3 is no regular expression"),
        (Model, {"up": 3}, TypeError, "rule 'up' must lead to 'muon', 'adamw', .* or a dict"),
        (Model, {"up": "sgd"}, ValueError, r"what rule 'up' leads to must be one of \['muon', "),
        (Model, {"up": "Muon"}, ValueError, "got 'Muon'; did you mean 'muon'"),
        (
            Model,
            {"up": {"base": "normun"}},
            ValueError,
            "the base of rule 'up' must be .* did you mean 'normuon'",
        ),
        (Model, ["up"], TypeError, r"rules must be a dict of .*'adamw'.*, got \['up'\] \(list\)"),
        (Model, "up", TypeError, r"rules must be a dict of .*, got 'up' \(str\)"),
        (nn.ReLU, None, ValueError, "no parameter of the model requires a gradient"),
        (
            lambda: nn.LazyLinear(3),
            None,
            ValueError,
            "'weight' is not initialised yet: run one forward",
        ),
    ],
)
def test_bad_arguments_are_named(model, rules, error, message):
    with pytest.raises(error, match=message):
        split_params(model(), rules)


def test_adamws_entries_name_no_other_base():
    with pytest.raises(ValueError, match="got base 'soap': name it in muon, or in a rule"):
        split_params(Model(), adamw={"base": "soap"}, verbose=False)


# ---- vectors ------------------------------------------------------------------------------------


def settings(groups):
    """Parameter -> the entries of its group."""
    return {
        n: {k: v for k, v in g.items() if k != "params"} for g in groups for n, _ in g["params"]
    }


def test_vectors_have_entries_of_their_own():
    options = {"adamw": {"weight_decay": 0.1, "lr": 0.2}, "vectors": {"weight_decay": 0}}
    rules = {r"0\.norm": {"weight_decay": 0.3}}
    found = settings(split_params(Model(), rules, muon={"lr": 1}, verbose=False, **options))
    decays = {name: its["weight_decay"] for name, its in found.items() if "base" in its}
    assert decays == {
        **dict.fromkeys(("pos", "embed.weight", "head.weight"), 0.1),
        **{f"blocks.0.norm.{name}": 0.3 for name in ("weight", "bias")},
        **{f"blocks.1.norm.{name}": 0 for name in ("weight", "bias")},
        **{f"blocks.{k}.up.bias": 0 for k in range(2)},
        "temperature": 0,
    }
    assert {its["lr"] for its in found.values() if "base" in its} == {0.2}
    assert {n for n, its in found.items() if "base" not in its} == {
        f"blocks.{k}.{layer}.weight" for k in range(2) for layer in ("up", "down")
    }


def test_what_is_thin_a_bias_or_per_element_is_a_vector():
    model = Kinds()
    model.norm, model.A_log = nn.LayerNorm((4, 4)), nn.Parameter(torch.ones(4, 8))
    found = settings(split_params(model, vectors={"weight_decay": 0}, verbose=False))
    of_many_dimensions = {
        n for n, its in found.items() if "weight_decay" in its and model.get_parameter(n).dim() > 1
    }
    assert of_many_dimensions == {
        *("row", "experts_bias", "biases.0", "norm.weight", "norm.bias", "A_log")
    }
    assert all("weight_decay" in found[n] for n, p in model.named_parameters() if p.dim() < 2)


def test_all_parameters_may_go_to_adamw():
    groups = split_params(Model(), {"": "adamw"}, vectors={"weight_decay": 0}, verbose=False)
    optimizer = emanest.AdamW(groups, 0.1, weight_decay=0.5)
    found = {p.dim() < 2: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert found == {False: 0.5, True: 0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"vectors": {"base": "soap"}},
            ValueError,
            "vectors has entries of AdamW's groups, got bas",
        ),
        (
            {"vectors": 0},
            TypeError,
            r"vectors must be a dict of entries .*'weight_decay': 0.*got 0",
        ),
        ({"adamw": [1]}, TypeError, r"adamw must be a dict of entries of groups, .*got \[1\]"),
        ({"muon": "soap"}, TypeError, r"muon must be a dict of entries .*got 'soap' \(str\)"),
        ({"muon": {"base": "Soap"}}, ValueError, "the base in muon must be .*you mean 'soap'"),
    ],
)
def test_bad_entries_are_named(options, error, message):
    with pytest.raises(error, match=message):
        split_params(Model(), verbose=False, **options)


# ---- one optimizer for a whole model ------------------------------------------------------------

LR, RATES = 0.05, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}
each_class = pytest.mark.parametrize("cls", [Muon, NorMuon])


def build(cls, method, seed=0):
    torch.manual_seed(seed)
    model = Model()
    rates = {**RATES, "betas": (0.0, 0.99)} if method == "schedule free" else RATES
    momentum = 0.0 if method == "schedule free" else 0.9
    groups = split_params(model, adamw=rates, verbose=False)
    options = {"momentum": momentum, "weight_decay": 0.0, "lookahead": METHODS.get(method)}
    return model, cls(groups, LR, **options)


def learn(model, optimizer, steps, after=lambda: None):
    losses = []
    for t in steps:
        words = torch.randint(WORDS, (16, 4), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(words).flatten(0, 1), words.flatten())
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


class Pair:
    """Two optimizers that share a model."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    def zero_grad(self):
        for each in self.optimizers:
            each.zero_grad()

    def step(self):
        for each in self.optimizers:
            each.step()

    def eval(self):
        for each in self.optimizers:
            each.eval()


@each_class
@pytest.mark.parametrize("method", [None, "ema", "gpa", "snoo"])
def test_it_trains_a_model(cls, method):
    losses = learn(*build(cls, method), range(60))
    assert losses[-1] < losses[0] / 3


@each_class
@pytest.mark.parametrize("method", [None, *METHODS])
def test_it_equals_two_optimizers(cls, method):
    one, optimizer = build(cls, method)
    two, _ = build(cls, method)
    named = dict(two.named_parameters())
    matrices, others = (
        [named[n] for n in group["param_names"]] for group in optimizer.param_groups
    )
    group, rates = optimizer.param_groups[0], {k: optimizer.param_groups[1][k] for k in RATES}
    options = {k: group[k] for k in ("lr", "momentum", "weight_decay")}
    pair = Pair(
        cls(matrices, **options, lookahead=METHODS.get(method)),
        emanest.AdamW(others, **rates, lookahead=METHODS.get(method)),
    )
    learn(one, optimizer, range(8))
    learn(two, pair, range(8))
    assert [bits(p) for p in one.parameters()] == [bits(p) for p in two.parameters()]
    optimizer.eval()
    pair.eval()
    assert [bits(p) for p in one.parameters()] == [bits(p) for p in two.parameters()]


@each_class
def test_one_scheduler_moves_all_groups(cls):
    model, optimizer = build(cls, "ema")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    seen = []

    def after():
        scheduler.step()
        seen.append([g["lr"] for g in optimizer.param_groups])

    learn(model, optimizer, range(10), after)
    for muon, adamw in seen[:-1]:
        assert muon / LR == pytest.approx(adamw / RATES["lr"])
        assert muon < LR
    assert seen[-1] == pytest.approx([0, 0])


@each_class
@pytest.mark.parametrize("method", [None, *METHODS])
def test_one_state_dict_resumes_exactly(cls, method):
    whole, optimizer = build(cls, method)
    learn(whole, optimizer, range(9))
    model, first = build(cls, method)
    learn(model, first, range(4))
    file = io.BytesIO()
    torch.save((model.state_dict(), first.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, second = build(cls, method, seed=1)
    again.load_state_dict(weights)
    second.load_state_dict(state)
    learn(again, second, range(4, 9))
    assert differing(content(optimizer), content(second)) == []


@each_class
def test_evaluation_never_changes_a_run(cls):
    model, optimizer = build(cls, "ema")
    learn(model, optimizer, range(6))
    watched, evaluated = build(cls, "ema")

    def look():
        with evaluated.at_iterate():
            watched(torch.zeros(1, 4, dtype=torch.long))

    learn(watched, evaluated, range(6), look)
    assert differing(content(optimizer), content(evaluated)) == []


def test_each_base_takes_its_own_options():
    _, optimizer = build(Muon, "ema")
    muon, adamw = optimizer.param_groups
    assert "betas" not in muon
    assert "ns_steps" not in adamw
    assert (adamw["eps"], adamw["amsgrad"]) == (1e-8, False)
    state = optimizer.state
    learn(Model(), optimizer, range(0))
    helpers.set_gradients(helpers.params_of(optimizer), 0)
    optimizer.step()
    assert {n for p in muon["params"] for n in state[p]} == {
        *("step", "lookahead", "momentum_buffer", "exp_avg_update")
    }
    assert {n for p in adamw["params"] for n in state[p]} == {
        *("step", "lookahead", "exp_avg", "exp_avg_sq", "exp_avg_update")
    }


def test_the_group_that_brings_momentum_is_named():
    groups = split_params(Model(), verbose=False)
    with pytest.raises(ValueError, match=r"got betas\[0\]=0.9 in a group with base 'adamw'"):
        Muon(groups, momentum=0.0, lookahead=METHODS["schedule free"])


def test_an_unknown_base_is_named():
    with pytest.raises(ValueError, match=r"base must be one of \['muon', 'adamw', .*\], got 'sgd'"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "base": "sgd"}])


def test_the_lookahead_may_differ_by_group():
    model = Model()
    groups = split_params(model, adamw={"lookahead": None}, verbose=False)
    optimizer = Muon(groups, LR, lookahead=EMANesterov(0.5, 0.9))
    learn(model, optimizer, range(5))
    muon, adamw = optimizer.param_groups
    assert all("exp_avg_update" in optimizer.state[p] for p in muon["params"])
    assert not any("exp_avg_update" in optimizer.state[p] for p in adamw["params"])
