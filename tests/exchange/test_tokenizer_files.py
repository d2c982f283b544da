"""The tokenizer files that an export holds give our ids, for any text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from overnight import tokenizers
from overnight.exchange import tokenizer_files, tokenizer_reading
from overnight.tokenizers import END_OF_TEXT
from overnight.tokenizers.simple import CharTokenizer
from tokenizers import Tokenizer as Library

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
SPACES = ["\n", "\r\n", "\t", " ", "  \n ", "\u00a0", "\u2028", "\u200d", "\ufeff", "\0"]
MARKS = ["e\u0301", "é", "\u0300", "👩\u200d👩", "😀", "日本語", "▁", "Ġ", "[UNK]", "##a", "</w>", END_OF_TEXT, "<|end"]
PIECES = st.sampled_from([*SPACES, *MARKS, "'s", "12345", "don't ", "a" * 30])
MIXED = st.lists(PIECES | TEXT, max_size=8).map("".join)
CORPUS = "the cat sat on the mat; the dog's log.\n" * 50 + "naïve 😀 日本語 12 123 1234\n" * 9


@pytest.fixture(scope="module", params=["gpt2", "bytes", "bpe:290"])
def pair(request, tmp_path_factory):
    """One of ours, and what AutoTokenizer makes of its files."""
    own = tokenizers.train(request.param, [CORPUS])
    folder = tmp_path_factory.mktemp("tokenizer")
    assert tokenizer_files.write(own, folder, 32)
    return own, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@given(MIXED)
@settings(max_examples=150, deadline=None)
def test_the_ids_of_any_text(pair, text):
    own, auto = pair
    ids = own.encode_prompt(text).tolist()
    assert auto(text, verbose=False)["input_ids"] == ids
    assert auto.decode(ids) == own.decode(ids) == text


def test_what_the_files_say(pair, tmp_path):
    own, auto = pair
    assert len(auto) == own.vocab_size
    assert auto.bos_token_id == auto.eos_token_id == own.end_of_text
    assert auto.model_max_length == 32
    tokenizer_files.write(own, tmp_path, 32)
    again = tokenizer_reading.read(tmp_path)[0]
    assert again is not None
    assert (again.name, again.to_json()) == (own.name, own.to_json())


@given(MIXED.filter(bool), st.booleans())
@settings(max_examples=150, deadline=None)
def test_characters(text, end_of_text):
    own = CharTokenizer.of([text], end_of_text)
    content = tokenizer_files.to_json(own, tokenizer_files.names(own))
    library, ids = Library.from_str(content), own.encode_prompt(text).tolist()
    assert library.encode(text).ids == ids
    assert library.decode(ids, skip_special_tokens=False) == text
    again = tokenizer_files.from_json(content)
    assert again is not None and again.to_json() == own.to_json()


@pytest.mark.parametrize("end_of_text", [True, False])
def test_characters_in_transformers(end_of_text, tmp_path):
    text = "a b\n\n\t\r\n e\u0301é 👩\u200d👩 \ufeff\u2028[UNK]\0 <|endoftext|>z"
    own = CharTokenizer.of([text], end_of_text)
    assert tokenizer_files.write(own, tmp_path, 32)
    auto, ids = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True), own.encode_prompt(text).tolist()
    assert auto(text)["input_ids"] == ids and len(auto) == own.vocab_size
    assert auto.decode(ids) == text
    assert auto.eos_token_id == own.end_of_text
    with pytest.raises(Exception, match="Missing"):
        auto("ü")  # as with ours, there is no id for it


@pytest.mark.parametrize("change", [{"a": 1, "b": 0}, {"ab": 2}])
def test_another_vocabulary_is_not_taken_for_ours(change):
    content = tokenizer_files.to_json(CharTokenizer("ab", True), ["a", "b", END_OF_TEXT])
    stored = json.loads(content)
    stored["model"]["vocab"].update(change)
    found = tokenizer_files.from_json(json.dumps(stored))
    assert found is None or found.encode("ab").tolist() == [stored["model"]["vocab"][c] for c in "ab"]
