"""Bytes and characters."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.errors import UserError
from overnight.tokenizers import END_OF_TEXT, load, train


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_bytes_are_utf8(text):
    tokenizer = load("bytes", None)
    ids = tokenizer.encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_bytes():
    tokenizer = load("bytes", None)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.to_json()) == (
        "bytes",
        257,
        256,
        None,
    )
    assert tokenizer.token_bytes().tolist() == [1] * 256 + [0]
    assert tokenizer.encode_prompt(f"{END_OF_TEXT}a").tolist() == [256, 97]
    assert tokenizer.decode([256, 0xFF, 97]) == f"{END_OF_TEXT}\ufffda"
    assert tokenizer.decode_bytes([256, 0xFF, 97]) == b"\xffa"
    assert tokenizer.encode("\ud83d").tolist() == list("\ufffd".encode())
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a").tolist() == [97]
    with pytest.raises(UserError, match="no token 257"):
        tokenizer.decode([257])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text()), st.booleans())
def test_characters_are_those_of_the_texts_in_order(texts, end_of_text):
    whole = "".join(texts)
    if not whole:
        with pytest.raises(UserError, match="no text"):
            train("chars", texts, end_of_text=end_of_text)
        return
    tokenizer = train("chars", texts, end_of_text=end_of_text)
    order = sorted(set(whole))
    assert tokenizer.vocab_size == len(order) + end_of_text
    assert tokenizer.end_of_text == (len(order) if end_of_text else None)
    ids = tokenizer.encode(whole)
    assert ids.tolist() == [order.index(c) for c in whole]  # nanoGPT's way
    assert tokenizer.decode(ids) == whole
    assert tokenizer.decode_bytes(ids) == whole.encode()
    assert tokenizer.token_bytes()[ids].sum() == len(whole.encode())


def test_the_end_of_text_of_characters():
    text = f"{END_OF_TEXT}ab{END_OF_TEXT}"
    tokenizer = train("chars", [text])
    end = tokenizer.end_of_text
    assert tokenizer.encode_prompt(text).tolist() == [end, *tokenizer.encode("ab").tolist(), end]
    assert tokenizer.encode(text).tolist() == [tokenizer.characters.index(c) for c in text]
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode_prompt(text)) == b"ab"
    few = train("chars", ["ab"])  # a prompt may hold the token though its letters are unknown
    assert few.encode_prompt(text).tolist() == [2, 0, 1, 2]
    without = train("chars", [text], end_of_text=False)
    assert without.encode_prompt(text).tolist() == without.encode(text).tolist()


@pytest.mark.parametrize("encode", ["encode", "encode_prompt"])
def test_an_unknown_character_is_named_with_its_place(encode):
    tokenizer = train("chars", ["abc\n"])
    text = "ab\nc" + (END_OF_TEXT if encode == "encode_prompt" else "") + "aé"
    place = text.index("é")
    with pytest.raises(UserError) as told:
        getattr(tokenizer, encode)(text)
    message = str(told.value)
    assert f"'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE) at position {place} (line 2, column {place - 2})" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"'\\x00' \(U\+0000, no name\) at position 0 "):
        tokenizer.encode("\0")


def test_characters_that_utf8_does_not_have():
    tokenizer = train("chars", ["a\ud83d", "\ud83d\ude42"])
    assert tokenizer.characters == "a\ufffd🙂"
    assert tokenizer.decode(tokenizer.encode("\ud83da\ud83d\ude42")) == "\ufffda🙂"
    assert tokenizer.encode_prompt(f"\ud83d\ude42{END_OF_TEXT}a").tolist() == [2, 3, 0]


@pytest.mark.parametrize("end_of_text", [True, False])
def test_characters_are_stored_and_loaded(tmp_path, end_of_text):
    text = 'b"\\\n\u2028é🙂'
    tokenizer = train("chars", [text], end_of_text=end_of_text)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_json(), encoding="utf-8")
    assert json.loads(tokenizer.to_json()) == {
        "format": "overnight-tokenizer",
        "version": 1,
        "kind": "chars",
        "characters": sorted(text),
        "end_of_text": end_of_text,
    }
    for other in (load("chars", file), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.name, other.vocab_size, other.end_of_text) == (
            "chars",
            tokenizer.vocab_size,
            tokenizer.end_of_text,
        )
        assert other.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert other.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "this version reads"),
        ({"kind": "words"}, "this version reads"),
        ({"characters": ["a", "a"]}, "different characters"),
        ({"characters": ["ab"]}, "different characters"),
        ({"characters": []}, "different characters"),
        ({"characters": [["a"]]}, "different characters"),
        ({"characters": ["\ud800"]}, "different characters"),
        ({"characters": 3}, "different characters"),
        ({"format": None}, "this version reads"),
        ({"end_of_text": "yes"}, "different characters"),
    ],
)
def test_a_broken_file_of_characters_is_named(tmp_path, change, message):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(train("chars", ["abc"]).to_json()) | change))
    with pytest.raises(UserError, match=message) as told:
        load("chars", file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_many_characters_take_four_bytes():
    everything = "".join(chr(c) for c in range(0x20, 0x20000) if not 0xD800 <= c < 0xE000)
    tokenizer = train("chars", [everything])
    ids = tokenizer.encode(everything)
    assert ids.dtype == np.uint32
    assert ids.tolist() == list(range(len(everything)))
