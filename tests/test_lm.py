"""The training example: corpus, model, command line, and what it writes."""

import json
import math
import pathlib
import random
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import corpus
import lm
from training import lr_factor, train
from transformer import make_model

TINY = ["--layers", "1", "--width", "16", "--context", "8", "--batch", "4"]


@pytest.fixture(autouse=True)
def threads():
    """One, as ``lm.main`` sets it for its process; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts():
    words = ["def", "return", "self", "for", "in", "if", "None", "True", "x", "y", "z", "m", "u"]
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=draw.randrange(50, 400))).encode() for _ in range(40)]


@pytest.fixture
def folder(tmp_path, texts):
    for k, text in enumerate(texts):
        path = tmp_path / "text" / f"part{k % 3}" / f"{k}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return tmp_path / "text"


def run(folder, out, *arguments):
    """Exit status and JSON of a tiny run."""
    status = lm.main([*TINY, "--corpus", str(folder), "--out", str(out), *arguments])
    return status, json.loads((out / "lm.json").read_text())


def test_split_has_no_text_on_both_sides(texts):
    # copies must land together, or validation text would have been trained on
    sides = [{text for _, text in side} for side in corpus.split(texts + texts[:20])]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(texts)
    share = sum(map(len, sides[1])) / sum(map(len, texts))
    assert 0.1 <= share < 0.2


def test_split_depends_on_contents_alone(texts, folder):
    assert corpus.split(texts) == corpus.split(texts[::-1])
    before = corpus.from_folder(folder)
    for path in sorted(folder.rglob("*.txt")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    (folder / ".hidden").write_text("left out")
    (folder / "binary").write_bytes(b"a\0b")
    after = corpus.from_folder(folder)
    assert after.digest == before.digest
    assert torch.equal(after.train, before.train)
    assert torch.equal(after.validation, before.validation)


def test_standard_library_is_found():
    library = corpus.standard_library()
    assert min(library.files) > 20
    assert 5 < len(library.train) / len(library.validation) < 10
    both = torch.cat([library.train, library.validation]).numpy().tobytes()
    assert b"class ArgumentParser" in both


def test_installed_python_stays_within_its_limit(tmp_path):
    places = [tmp_path / name for name in ("library", "packages")]
    for k in range(60):
        folder = places[k % 2] / ("tests" if k < 4 else f"part{k % 3}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.py").write_text(f"x{k} = 1\n" * 20)
        (folder / f"{k}.txt").write_text("no Python")
    small, large = (corpus.installed_python(limit, places) for limit in (3000, 10**6))
    sizes = [len(text.train) + len(text.validation) for text in (small, large)]
    # 56 files of 120 bytes and more, and a zero byte between two
    assert 3000 - 160 < sizes[0] - sum(small.files) + 2 <= 3000
    assert sum(large.files) == 56
    texts = [
        set(torch.cat([text.train, text.validation]).numpy().tobytes().split(b"\n"))
        for text in (small, large)
    ]
    assert b"x0 = 1" not in texts[1]
    assert {t.strip(b"\0") for t in texts[0]} <= {t.strip(b"\0") for t in texts[1]}
    assert corpus.installed_python(3000, places).digest == small.digest


def test_targets_are_the_bytes_that_follow():
    text = torch.arange(100, dtype=torch.uint8)
    inputs, targets = corpus.sample(text, 50, 8, torch.Generator().manual_seed(0), "cpu")
    assert inputs.shape == targets.shape == (50, 8)
    assert torch.equal(targets, inputs + 1)


def test_sample_reaches_both_ends():
    text = torch.arange(10, dtype=torch.uint8)
    inputs, targets = corpus.sample(text, 200, 8, torch.Generator().manual_seed(0), "cpu")
    assert inputs.min() == 0
    assert targets.max() == 9


def test_model_is_causal():
    model = make_model(layers=2, width=16, context=12, seed=0, device="cpu")
    inputs = torch.randint(256, (3, 12))
    before = model(inputs)
    for place in (1, 6, 11):
        changed = inputs.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        after = model(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert (after[:, place:] - before[:, place:]).abs().amax(-1).min() > 1e-4


def test_model_reads_earlier_bytes():
    model = make_model(layers=1, width=16, context=12, seed=0, device="cpu")
    inputs = torch.randint(256, (1, 12))
    changed = inputs.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 256
    assert (model(changed)[:, -1] - model(inputs)[:, -1]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("std", "embedded", "added"), [(None, 1.0, 64**-0.5 / 3**0.5), (0.1, 0.1, 0.05)]
)
def test_weights_start_from_what_was_asked_for(std, embedded, added):
    """By default as PyTorch's do; what is added to the residual stream by the number of blocks."""
    model = make_model(layers=2, width=64, context=16, seed=0, device="cpu", std=std)
    block = model.blocks[1]
    assert model.embed.weight.std().item() == pytest.approx(embedded, rel=0.05)
    assert block.proj.weight.std().item() == pytest.approx(added, rel=0.05)
    assert torch.equal(block.norm1.weight, torch.ones(64))


# dynamo hides it, which does not help where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_are_compiled_once_and_compute_the_same():
    counters = torch._dynamo.utils.counters["stats"]
    options = {"layers": 3, "width": 16, "context": 12, "seed": 0, "device": "cpu"}
    plain, compiled = (make_model(**options, heads=2, dtype=torch.bfloat16) for _ in range(2))
    compiled.compile_blocks(backend="eager", dynamic=False)
    before = counters["unique_graphs"]
    inputs = torch.randint(256, (3, 12))
    for model in (plain, compiled):
        model.loss(inputs, inputs).backward()
        with torch.no_grad():
            model.loss(inputs, inputs)
    # one to train, one to evaluate
    assert counters["unique_graphs"] - before == 2
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_products_are_of_the_dtype_that_was_asked_for():
    seen = []
    model = make_model(1, 16, 8, seed=0, device="cpu", heads=2, dtype=torch.bfloat16)
    model.blocks[0].up.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    loss = model.loss(*torch.randint(256, (2, 4, 8)))
    assert (seen, loss.dtype) == ([torch.bfloat16], torch.float32)


def test_loss_is_in_nats():
    model = make_model(layers=1, width=16, context=8, seed=0, device="cpu")
    model.head.weight.data.zero_()
    inputs = torch.randint(256, (4, 8))
    assert model.loss(inputs, inputs).item() == pytest.approx(math.log(256), abs=1e-5)


def test_lr_warms_up_holds_and_decays():
    factors = [lr_factor(step, 2000) for step in range(2000)]
    assert factors[0] == pytest.approx(1 / 50)
    assert factors[49:1501] == [1.0] * 1452
    assert factors[1750] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(1 / 500)
    assert lr_factor(1999, 2000, decays=False) == 1.0


def test_compare_writes_table_figure_and_numbers(folder, tmp_path, capsys):
    out = tmp_path / "out"
    status, result = run(folder, out, "--compare", "--steps", "12", "--lr", "0.01")
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == ["lm.json", "lm.md", "lm.png"]
    assert (out / "lm.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "lm.md").read_text()
    assert table.count("\n| adamw") == 3
    assert "| loss at x | loss at y | ms per step | optimizer ms |" in table
    assert table.split("\n\n", 1)[1] in capsys.readouterr().out

    runs = result["runs"]
    assert [(r["name"], r["lr"]) for r in runs] == [
        ("adamw", 0.01),
        ("adamw + ema-nesterov", 0.01),
        ("adamw", 0.02),
    ]
    plain, ahead, _ = (r["curves"] for r in runs)
    assert plain["step"] == list(range(13))
    # same weights, same batches: equal until the lookahead starts, whose window is [3, 9)
    assert plain["train"][:3] == ahead["train"][:3]
    assert plain["train"][4:] != ahead["train"][4:]
    assert plain["validation_at_x"] == plain["validation_at_y"]
    at_x, at_y = ahead["validation_at_x"], ahead["validation_at_y"]
    apart = [x != y for x, y in zip(at_x, at_y, strict=True)]
    assert apart == [3 <= step < 9 for step in range(13)]
    sizes = [r["final"]["optimizer_bytes_per_parameter"] for r in runs]
    assert sizes == pytest.approx([8, 12, 8], abs=0.1)


def test_sweep_has_both_at_every_lr(folder, tmp_path, capsys):
    status, result = run(folder, tmp_path / "out", "--sweep-lr", "--steps", "4", "--lr", "0.01")
    assert status == 0
    lrs = [0.0025, 0.005, 0.01, 0.02]
    names = ("adamw", "adamw + ema-nesterov")
    assert [(r["name"], r["lr"]) for r in result["runs"]] == [(n, lr) for lr in lrs for n in names]
    assert capsys.readouterr().out.count("\nSame lr: ") == 4


def test_seed_decides_the_losses(folder, tmp_path):
    def losses(seed):
        _, result = run(folder, tmp_path / "out", "--steps", "6", "--seed", seed)
        return [result["runs"][0]["curves"][k] for k in ("train", "validation_at_x")]

    assert losses("1") == losses("1")
    assert losses("1") != losses("2")


def test_diverged_run_is_reported(folder, tmp_path, capsys):
    status, result = run(folder, tmp_path / "out", "--compare", "--steps", "8", "--lr", "1e38")
    assert status == 0
    assert [r["final"]["loss_x"] for r in result["runs"]] == [None] * 3
    assert all(r["diverged_at_step"] <= 8 for r in result["runs"])
    out = capsys.readouterr().out
    assert "|   nan |" in out.replace("      nan", "  nan")
    assert "diverged." in out


def test_every_method_trains_on_every_base(folder, tmp_path):
    # SNOO's first step of the iterate is the 28th
    args = lm.parse([*TINY, "--corpus", str(folder), "--out", str(tmp_path), "--steps", "30"])
    runs = [
        lm.make_run(args, base, method, lm.BASES[base].lr / 4)
        for base in lm.BASES
        for method in lm.LOOKAHEADS
    ]
    settings = {"steps": 30, "batch": 4, "context": 8, "seed": 0, "device": args.device}
    train(runs, args.text, **settings, evaluations=1, validation=(1, 64))
    for each in runs:
        assert each.at_x[-1] < each.at_x[0] - 0.05, each.label


class Reads(TorchDispatchMode):
    """Collects tensors whose values the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found.append(args[0])
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_its_loss(folder, tmp_path):
    args = lm.parse([*TINY, "--corpus", str(folder), "--out", str(tmp_path), "--steps", "4"])
    run = lm.make_run(args, "adamw", "ema-nesterov", 0.01)
    losses, usual = [], run.model.loss
    run.model.loss = lambda *batch: losses.append(usual(*batch)) or losses[-1]
    settings = {"steps": 4, "batch": 4, "context": 8, "seed": 0, "device": args.device}
    with Reads() as reads:
        reads.found = []
        train([run], args.text, **settings, evaluations=1, validation=(1, 2))
    # two of the first evaluation, then the steps
    assert run.train == [loss.item() for loss in losses[2:6]]
    # kept, so that none lies where another was
    assert not {t.data_ptr() for t in reads.found} & {t.data_ptr() for t in losses}
    assert len(run.step_ms) == len(run.optimizer_ms) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--corpus", "/nowhere/at/all"], ["--corpus", "/nowhere/at/all", "give the path"]),
        (["--corpus", "EMPTY"], ["--corpus", "0 different text files", "at least 2"]),
        (["--corpus", "SHORT"], ["--corpus", "1 bytes", "--context"]),
        (["--device", "nonsense"], ["--device", "nonsense", "try cpu"]),
        (["--device", "meta"], ["--device", "meta", "try cpu"]),
        (["--base", "adagrad"], ["--base", "adagrad", "adamw"]),
        (["--lookahead", "polyak"], ["--lookahead", "polyak", "ema-nesterov"]),
        (["--compare", "--lookahead", "none"], ["--lookahead", "none"]),
        (["--compare", "--sweep-lr"], ["--sweep-lr", "--compare"]),
        (["--steps", "1"], ["--steps", "1", "at least 2"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--lr", "-1"], ["--lr", "-1", "positive"]),
        (["--lr", "nan"], ["--lr", "nan", "positive"]),
        (["--width", "18"], ["--width", "18", "multiple of 4"]),
        (["--seed", "-3"], ["--seed", "-3"]),
        (["--threads", "0"], ["--threads", "0", "at least 1"]),
        (["--out", "FILE"], ["--out", "name a folder"]),
    ],
)
def test_bad_arguments_exit_with_2_and_one_line(arguments, words, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "1").write_text("a")
    (tmp_path / "short" / "2").write_text("b")
    (tmp_path / "file").touch()
    places = {name.upper(): str(tmp_path / name) for name in ("empty", "short", "file")}
    given = [places.get(argument, argument) for argument in arguments]
    with pytest.raises(SystemExit) as exit_:
        lm.main(["--corpus", str(folder), "--out", str(tmp_path / "out"), *given])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_device_exits_with_2(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        lm.main(["--corpus", str(folder), "--out", str(tmp_path), "--device", "cuda"])
    assert exit_.value.code == 2
    assert "--device: cuda cannot be used" in capsys.readouterr().err
