# SPDX-License-Identifier: MIT
"""The page of results and its figures: made from stored runs, the same whenever made again."""

import json
import re
import xml.etree.ElementTree

import pytest
from reported import (
    LOSSES,
    PAIRS,
    SWEEP,
    along_an_axis,
    classified,
    mapped,
    probed,
    store,
)

from examples.lab import __main__ as command
from examples.lab import report
from examples.lab.experiments import EXPERIMENTS
from examples.lab.report import drawing, readme
from examples.lab.store import RESULTS, ROOT, Store

pytest.importorskip("matplotlib")

KINDS = {
    "sweep": lambda: (SWEEP, store(SWEEP, LOSSES)),
    "axis": lambda: along_an_axis({100: [0.01, 0.02], 200: [0.03, 0.05], 400: [-0.1, -0.2]}),
    "along": lambda: probed([0.1, 0.1, 0.04]),
    "map": lambda: mapped(PAIRS),
    "classes": classified,
}


def test_every_kind_of_report_is_drawn_here():
    assert set(KINDS) == set(report.REPORTS)


def words(svg):
    """The text that is in a figure."""
    root = xml.etree.ElementTree.fromstring(svg)
    found = [each for each in root.iter() if each.tag.endswith("}text")]
    return " ".join(" ".join("".join(each.itertext()).split()) for each in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_the_same_bytes_twice_and_its_title_is_the_finding(kind):
    section = report.section(*KINDS[kind]())
    again = report.section(*KINDS[kind]())
    assert section.figures
    for figure, other in zip(section.figures, again.figures, strict=True):
        svg = drawing.svg(figure)
        assert svg == drawing.svg(other)
        assert len(svg) < 60_000
        assert " ".join(figure.title.split()) in words(svg)
        # of white, on a page of any colour
        assert b"fill: #ffffff" in svg.split(b"axes_1")[0]
        assert b"dc:date" not in svg


TITLES = {
    "sweep": "Base + EMA ends 0.1000 ± 0.0045 lower than Base",
    "axis": "The gain of Base + EMA does not change as far as is seen (2 seeds, 5 are needed): "
    "0.0150 ± 0.0050 (0.75 %) with 100 steps, -0.150 ± 0.050 (-7.5 %) with 400 steps, the largest "
    "0.040 ± 0.010 (2 %) with 200 steps.",
    "along": "the loss falls in all of 3 seeds at 1 of 1 times along the average of updates",
    "map": "the lowest is -0.097 ± 0.015 at decay 0.9 and stepsize 0.5",
    "classes": "The highest accuracy is that of Base + NALA (85.50 ± 0.50 %, 2 seeds), the lowest "
    "loss is that of Base + NALA (0.320 ± 0.020, 2 seeds)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_titles_are_computed(kind):
    assert TITLES[kind] in report.section(*KINDS[kind]()).figures[0].title


def test_a_title_says_that_an_arm_is_not_lower():
    losses = {**LOSSES, "Base + EMA": {0.25: [2.4], 0.5: [2.2, 2.21, 2.25, 2.25, 2.29], 1.0: [2.3]}}
    losses["Base + EMA"][2.0] = [2.5]
    section = report.section(SWEEP, store(SWEEP, losses))
    assert "ends 0.2000 ± 0.0045 higher than Base" in section.figures[0].title
    assert "(worse)" in section.figures[0].title


def test_figures_have_error_bars_and_units():
    svg = drawing.svg(report.section(*KINDS["sweep"]()).figures[0])
    assert b"LineCollection" in svg  # bars
    assert b"FillBetweenPolyCollection" in svg  # the band
    assert "loss at the end (nats)" in words(svg)


def test_a_diverged_run_is_marked_in_the_figure():
    losses = {**LOSSES, "Base": {**LOSSES["Base"], 2.0: [None]}}
    svg = drawing.svg(report.section(SWEEP, store(SWEEP, losses)).figures[0])
    assert "diverged" in words(svg)
    assert "diverged" not in words(drawing.svg(report.section(*KINDS["sweep"]()).figures[0]))


def test_a_long_title_keeps_a_number_beside_its_error():
    title = "a lookahead ends 0.1 ± 0.2 lower " * 10
    lines = drawing.wrapped(title, 60).split("\n")
    assert max(map(len, lines)) <= 60
    assert not any(line.startswith("±") or line.endswith("±") for line in lines)


@pytest.fixture
def stored(tmp_path):
    """A store of the sweep alone, and the experiments of a page."""
    lines = store(SWEEP, LOSSES)
    (tmp_path / "lines").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines.values())
    (tmp_path / "lines" / f"{SWEEP.name}.jsonl").write_text(text)
    experiment, _ = along_an_axis({200: [0.01], 400: [0.02]})
    experiments = {SWEEP.name: SWEEP, experiment.name: experiment}
    return experiments, Store(tmp_path / "lines", tmp_path / "work")


def test_a_page_begins_with_the_answer(stored):
    experiments, found = stored
    page = report.page_text(experiments, found.lines())
    answer = page.split("## The answer")[1].split("## How it was measured")[0]
    assert (
        "Looking ahead helps in 1 of 1 comparison with the base alone, each at its own best "
        "learning rate: the loss ends 4.9 % lower." in answer
    )
    assert "With a lookahead the best learning rate is lower in 1, the same in 0" in answer
    assert "-4.90 ± 0.22 %, better" in answer
    assert "10.00 ± 0.45 of 100 steps earlier. ([sweep_of_tests](#sweep_of_tests))" in answer


def test_a_page_says_how_it_was_measured(stored):
    experiments, found = stored
    how = report.page_text(experiments, found.lines()).split("## How it was measured")[1]
    how = how.split("## sweep_of_tests")[0]
    assert f"{len(found.lines())} stored runs, of which 0 diverged" in how
    row = ["a chip", "2.13", "3.11", "abc", str(len(found.lines()))]
    assert re.search(r"\| *" + r" *\| *".join(map(re.escape, row)) + r" *\|", how)
    assert re.search(r"bytes of tests *\| *digest *\| *15 *\|", how)
    assert "0 at all; 1, 2, 3 and 4 at the best" in how
    diverged = store(SWEEP, {**LOSSES, "Base": {**LOSSES["Base"], 2.0: [None]}})
    assert "15 stored runs, of which 1 diverged" in report.page_text(experiments, diverged)


def test_a_page_names_the_command_and_what_was_not_run(stored):
    experiments, found = stored
    page = report.page_text(experiments, found.lines())
    assert "```sh\npython -m examples.lab run sweep_of_tests\n" in page
    assert "- `python -m examples.lab run axis` (two cores): Does it grow?" in page


def test_a_page_is_written_with_the_figures_that_it_shows(stored, tmp_path):
    experiments, found = stored
    gone = tmp_path / "docs" / "figures" / "lab_of_old_1.svg"
    gone.parent.mkdir(parents=True)
    gone.touch()
    gone.with_name("other.svg").touch()
    path = report.write_page(experiments, found, tmp_path / "docs")
    assert path.read_text() == report.page_text(experiments, found.lines())
    shown = re.findall(r"\]\(figures/(.*)\)", path.read_text())
    assert shown == ["lab_sweep_of_tests_1.svg"]
    assert {each.name for each in gone.parent.iterdir()} == {*shown, "other.svg"}


def test_the_command_line_tells_and_writes(stored, tmp_path, monkeypatch, capsys):
    before = (ROOT / "README.md").read_text()
    experiments, found = stored
    monkeypatch.setattr(command, "EXPERIMENTS", experiments)
    results = ["--results", str(found.folder)]
    assert command.main(["report", SWEEP.name, *results]) == 0
    said = capsys.readouterr().out
    assert said.strip() == report.text(SWEEP, found.lines())
    assert "Base + EMA is better than Base" in said
    assert command.main(["page", "--out", str(tmp_path / "docs"), *results]) == 0
    assert (tmp_path / "docs" / "results.md").exists()
    assert (ROOT / "README.md").read_text() == before


def test_the_page_is_what_the_stored_runs_give(tmp_path):
    page = (ROOT / "docs" / "results.md").read_text()
    lines = Store(RESULTS, tmp_path).lines()
    assert page == report.page_text(EXPERIMENTS, lines), "run `python -m examples.lab page`"
    # the figures are those of the page, and none is left from an older one
    shown = re.findall(r"\]\(figures/(lab_.*)\)", page)
    found = {path.name for path in (ROOT / "docs" / "figures").glob("lab_*.svg")}
    assert found == set(shown)


def test_the_titles_of_the_pages_figures_are_those_of_the_stored_runs():
    page = (ROOT / "docs" / "results.md").read_text()
    for title, name in re.findall(r"!\[(.*)\]\((figures/lab_.*)\)", page):
        assert " ".join(title.split()) in words((ROOT / "docs" / name).read_bytes())


def test_the_readme_has_what_the_stored_runs_give(tmp_path):
    text = (ROOT / "README.md").read_text()
    lines = Store(RESULTS, tmp_path).lines()
    assert readme.written(text, EXPERIMENTS["demo"], lines) == text, "run `make lab`"
    assert "| AdamW + EMA-Nesterov | 0.006 |" in text


def test_a_page_without_runs_says_so():
    page = report.page_text(EXPERIMENTS, {})
    assert "Nothing can be said yet: no runs are stored." in page
    assert "python -m examples.lab run byte_lm" in page
    assert "![" not in page
