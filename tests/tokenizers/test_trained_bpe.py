"""Trained byte-pair encoding: ids equal `tokenizers`' and transformers', and training is deterministic."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.errors import UserError
from overnight.tokenizers import END_OF_TEXT, load, train

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")  # on every machine, about 100 KB
TEXTS = [*TEXT.split("\n\n"), "aaaaaaaaaaaaaaa", "naïve café 日本語 🙂🙂", " " * 50]
INPUTS = st.lists(
    st.one_of(
        st.sampled_from([*" \n\t'\u3000a", "aaa", "self", "argument", "don't", "123", "日本", END_OF_TEXT]),
        st.text(max_size=8),
        st.text("abcs e", max_size=12),
        st.integers(0, len(TEXT)).map(lambda i: TEXT[i : i + 30]),
    )
).map("".join)


@pytest.fixture(scope="module")
def bpe():
    return train("bpe:1000", TEXTS)


@pytest.fixture(scope="module")
def oracle(bpe):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(bpe.to_json())


def plain_ids(oracle, text):
    """What `tokenizers` gives for a document, in which <|endoftext|> is text."""
    oracle.encode_special_tokens = True
    return oracle.encode(text).ids


@settings(max_examples=300, deadline=None)
@given(INPUTS)
def test_ids_are_those_of_tokenizers_and_come_back_as_the_text(bpe, oracle, text):
    ids = bpe.encode(text)
    assert ids.tolist() == plain_ids(oracle, text)
    assert bpe.decode(ids) == text
    assert bpe.decode_bytes(ids) == text.encode()
    assert bpe.token_bytes()[ids].sum() == len(text.encode())


def test_what_it_is(bpe):
    assert (bpe.name, bpe.vocab_size, bpe.end_of_text) == ("bpe:1000", 1000, 999)
    assert bpe.encode("a").dtype == np.uint16
    stored = json.loads(bpe.to_json())
    assert len(stored["model"]["vocab"]) == 1000
    assert len(stored["model"]["merges"]) == 1000 - 257
    assert bpe.encode_prompt(f"{END_OF_TEXT}a").tolist() == [999, *bpe.encode("a").tolist()]
    assert 999 not in bpe.encode(END_OF_TEXT)
    assert bpe.decode([999]) == END_OF_TEXT and bpe.decode_bytes([999]) == b""
    assert len(bpe.encode(TEXT)) < len(TEXT) / 2
    assert bpe.decode(bpe.encode("a\ud83d")) == "a\ufffd"


def test_transformers_gives_the_same_ids(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "tokenizer.json"
    file.write_text(bpe.to_json(), encoding="utf-8")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    for text in [*TEXTS[:50], TEXT, "日本語 🙂\u3000 x  \n\n", END_OF_TEXT + "a b" + END_OF_TEXT]:
        assert other.encode(text) == bpe.encode_prompt(text).tolist()
        assert other.decode(other.encode(text), clean_up_tokenization_spaces=False) == text
    assert len(other) == other.vocab_size == bpe.vocab_size


def test_training_gives_the_same_bytes_with_any_number_of_threads(bpe):
    script = (
        "import sys, hashlib; from overnight.tokenizers import train; import test_trained_bpe as t;"
        "print(hashlib.sha256(train('bpe:1000', t.TEXTS).to_json().encode()).hexdigest())"
    )
    found = set()
    for threads, seed in (("1", "1"), ("2", "2"), ("2", "3")):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {hashlib.sha256(bpe.to_json().encode()).hexdigest()}


def test_it_is_stored_loaded_and_pickled(bpe, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(bpe.to_json(), encoding="utf-8")
    bpe.encode("a")
    for other in (load("bpe:1000", file), pickle.loads(pickle.dumps(bpe))):
        assert (other.name, other.vocab_size, other.end_of_text) == (bpe.name, bpe.vocab_size, bpe.end_of_text)
        assert other.encode(TEXT).tolist() == bpe.encode(TEXT).tolist()
        assert other.to_json() == bpe.to_json()


def test_the_smallest_is_bytes(bpe):
    tokenizer = train("bpe:257", ["abc"])
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    assert len(tokenizer.encode("é")) == 2


def test_too_little_text_says_how_many_ids_it_gives():
    with pytest.raises(UserError, match="use bpe:259, or more text"):
        train("bpe:1000", ["abc", "abc"])
    assert train("bpe:259", ["abc", "abc"]).vocab_size == 259


def test_an_error_in_the_texts_comes_through():
    def texts():
        yield "abc"
        raise UserError("row 7 is broken")

    with pytest.raises(UserError, match="row 7 is broken"):
        train("bpe:300", texts())


@pytest.mark.parametrize(
    "name",
    ["bpe:", "bpe", "bpe:abc", "bpe:256", "bpe:0", "bpe:-5", "bpe:04096", "bpe:4k", "bpe:2000000", "bpe:" + "9" * 5000],
)
def test_bad_sizes(name):
    with pytest.raises(UserError, match=r"bpe:SIZE|the size must be"):
        train(name, ["abc"])


def broken(stored, how):
    model = stored["model"]
    if how == "order":
        model["merges"][:2] = model["merges"][1::-1]
    elif how == "name":
        model["merges"][0] = ["\n", "a"]
    elif how == "missing":
        del model["vocab"]
    elif how == "special":
        stored["added_tokens"].clear()
    elif how == "spaces":
        stored["pre_tokenizer"]["add_prefix_space"] = True
    elif how == "type":
        model["type"] = "WordPiece"
    elif how == "nothing":
        return None
    return stored


@pytest.mark.parametrize("how", ["order", "name", "missing", "special", "spaces", "type", "nothing"])
def test_a_broken_file_is_named(bpe, tmp_path, how):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(broken(json.loads(bpe.to_json()), how)))
    with pytest.raises(UserError, match="not the byte-level BPE tokenizer 'bpe:1000'") as told:
        load("bpe:1000", file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_the_file_of_another_size_is_refused(bpe, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(bpe.to_json())
    with pytest.raises(UserError, match="number of ids"):
        load("bpe:1001", file)
