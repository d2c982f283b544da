"""Which text a dataset holds out, told without regard to its tokenizer."""

from __future__ import annotations

import hashlib

import pytest

from overnight.bands.text import same_text
from overnight.data import identity
from overnight.data.mixture import Mixture
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source


@pytest.fixture
def made(tmp_path):
    """A dataset of 40 documents, whose words `salt` changes."""

    def make(name: str, tokenizer: str, salt: str = ""):
        texts = tmp_path / f"texts{salt}"
        texts.mkdir(exist_ok=True)
        for number in range(40):
            (texts / f"{number}.txt").write_text(f"Document {number}{salt}, and what it says: " + "la " * number)
        options = PrepareOptions(tokenizer=tokenizer, val_fraction=0.3)
        return prepare(open_source("files", [str(texts)]), tmp_path / name, options)

    return make


def test_the_text_is_the_same_in_any_tokenizer(made, monkeypatch):
    monkeypatch.setattr(identity, "PIECE", 64)
    monkeypatch.setattr(identity, "HEAD", 200)
    found = [identity.identity(made(name, name)) for name in ("bytes", "gpt2", "chars")]
    assert len({str(one["validation"]) for one in found}) == 1
    assert found[0]["validation"]["head_bytes"] == 200
    assert len({str(one["tokenizer"]) for one in found}) == 3
    other = identity.identity(made("other", "bytes", salt="!"))
    assert same_text({**found[0], "fingerprint": 1}, {**found[1], "fingerprint": 2})
    assert same_text({**found[0], "fingerprint": 1}, {**other, "fingerprint": 2}) is False


def test_it_is_the_hash_of_the_validation_text(made):
    manifest = made("data", "bytes")
    assert Mixture.open(manifest.folder).to_json()["validation"] == identity.held_out_text(manifest)
    import numpy as np

    ids = np.load(manifest.folder / "val_000000.npy")
    text = bytes(ids[ids < 256].astype(np.uint8))  # 256 is the end of text
    found = identity.held_out_text(manifest)
    assert found["head_sha256"] == hashlib.sha256(text).hexdigest()
    assert found["bytes"] == found["head_bytes"] == len(text)


def test_each_corpus_of_a_mixture_has_its_own(made):
    one, two = made("one", "bytes"), made("two", "bytes", salt="!")
    entry = Mixture.open(f"{one.folder}:1,{two.folder}:2").to_json()
    assert "validation" not in entry
    assert [corpus["validation"] for corpus in entry["corpora"]] == [identity.held_out_text(m) for m in (one, two)]


def test_ids_alone_have_no_text(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text("5 17 2 " * 20 + str(number))
    manifest = prepare(open_source("files", [str(texts)]), tmp_path / "ids", PrepareOptions(tokenizer="ids:100"))
    assert identity.held_out_text(manifest) is None
