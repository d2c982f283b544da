"""A tokenizer beside weights is taken for one of ours where it gives the same ids, and never otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpts import oracle

from overnight import tokenizers
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.exchange import sources, tokenizer_files, tokenizer_reading
from overnight.pretrained import Pretrained
from overnight.tokenizers import END_OF_TEXT, same_ids
from overnight.tokenizers.bpe import BPETokenizer
from overnight.tokenizers.gpt2 import MERGES, GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer
from tokenizers import Tokenizer as Library

ONE = "the cat sat on the mat; the dog's log. A naive quick brown fox jumps over it, 12 123\n"
OTHER = "an aunt of mine and her hat, which is that of a man; quick brown foxes never jumped over 45 lazy dogs\n"
TEXT = " The cat's naïve;  12345\n\n don't 😀 " + END_OF_TEXT


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    found = tokenizers.train(
        "bpe:290", ["the cat sat on the mat; the dog's log. A naive quick brown fox jumps over it, 12 123\n" * 50]
    )
    assert isinstance(found, BPETokenizer)
    return found


@pytest.fixture(scope="module")
def gpt2_json(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer_files.write(GPT2Tokenizer(), folder, 32)
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def of(vocab_size: int) -> ModelConfig:
    return ModelConfig(vocab_size=vocab_size)


def read(folder: Path, content: object = None, **files: object):
    """What is read of a folder with a tokenizer.json and other files of JSON."""
    for name, value in {"tokenizer": content, **files}.items():
        if value is not None:
            (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return tokenizer_reading.read(folder)


def test_gpt2_in_the_form_of_its_own_repository(gpt2_json, tmp_path):
    """As an older version of the library wrote it: without what has a default, with a post-processor for offsets."""
    stored = json.loads(gpt2_json)
    del stored["model"]["type"], stored["model"]["ignore_merges"], stored["model"]["byte_fallback"]
    del stored["pre_tokenizer"]["use_regex"]
    stored["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    stored["model"]["merges"] = [" ".join(pair) for pair in stored["model"]["merges"]]
    stored["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    found, why = read(tmp_path, stored, tokenizer_config={"model_max_length": 1024})
    assert isinstance(found, GPT2Tokenizer) and not why
    assert Library.from_str(json.dumps(stored)).encode(TEXT).ids == found.encode_prompt(TEXT).tolist()


def test_the_merges_of_gpt2_with_other_ids_are_not_gpt2(gpt2_json, tmp_path):
    stored = json.loads(gpt2_json)
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    assert Library.from_str(json.dumps(stored)).encode("a").ids != GPT2Tokenizer().encode("a").tolist()
    found, why = read(tmp_path, stored)
    assert found is None and "vocabulary" in why


def test_gpt2_in_older_files(tmp_path):
    vocabulary = {name: i for i, name in enumerate(tokenizer_files.names(GPT2Tokenizer()) or [])}
    (tmp_path / "merges.txt").write_bytes(MERGES.read_bytes())
    found, why = read(tmp_path)
    assert found is None and "vocab.json" in why  # ids that nobody has said
    found, why = read(tmp_path, vocab=vocabulary)
    assert isinstance(found, GPT2Tokenizer) and not why


def test_older_files_of_another_tokenizer(bpe, tmp_path):
    model = json.loads(bpe.to_json())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found, _ = read(tmp_path, vocab=model["vocab"])
    assert found is not None and same_ids(found, bpe) and found.name == "bpe:290"
    (tmp_path / "merges.txt").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    assert tokenizer_reading.read(tmp_path)[0] is None
    swapped = {**model["vocab"], "a": model["vocab"]["b"], "b": model["vocab"]["a"]}
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read(tmp_path, vocab=swapped)[0] is None


def test_how_a_file_is_laid_out_does_not_matter(bpe, tmp_path):
    stored = json.loads(bpe.to_json())
    again = {key: stored[key] for key in reversed(stored)}
    again["model"] = {**stored["model"], "merges": [" ".join(pair) for pair in stored["model"]["merges"]]}
    found, _ = read(tmp_path, json.dumps(again, ensure_ascii=True))
    assert found is not None and same_ids(found, bpe)
    weights = Pretrained("made", of(290), 32, {}, BPETokenizer("bpe:290", json.dumps(again)))
    weights.refuse_other_tokenizer(bpe, "data")
    other = tokenizers.train("bpe:290", [OTHER * 50])
    with pytest.raises(UserError, match="another bpe:290"):
        weights.refuse_other_tokenizer(other, "data")


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"post_processor": {"type": "BertProcessing", "sep": ["<|endoftext|>", 289], "cls": ["<|endoftext|>", 289]}},
        {"model": {"end_of_word_suffix": "</w>"}},
        {"model": {"dropout": 0.5}},
        {"model": {"ignore_merges": True}},
        {"added_tokens": {"content": "[PAD]", "id": 290}},
        {"added_tokens": {"lstrip": True}},
    ],
)
def test_what_gives_other_ids_is_none_of_ours(change, bpe, tmp_path):
    stored = json.loads(bpe.to_json())
    for key, value in change.items():
        if key == "added_tokens":
            token = stored["added_tokens"][0]
            stored["added_tokens"] = [token, {**token, **value}] if "id" in value else [{**token, **value}]
        else:
            stored[key] = {**stored[key], **value} if key == "model" else value
    Library.from_str(json.dumps(stored))  # the library takes it
    found, why = read(tmp_path, stored)
    assert found is None and why and "\n" not in why


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"add_prefix_space": True}},
        {"tokenizer_config": {"add_bos_token": True}},
        {"tokenizer_config": {"pad_token": "[PAD]"}},
        {"tokenizer_config": {"added_tokens_decoder": {"290": {"content": "<user>"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"289": {"content": END_OF_TEXT, "rstrip": True}}}},
        {"special_tokens_map": {"additional_special_tokens": ["<user>"]}},
        {"added_tokens": {"<user>": 290}},
    ],
)
def test_settings_beside_it_that_give_other_ids(files, bpe, tmp_path):
    harmless = {"bos_token": END_OF_TEXT, "eos_token": {"content": END_OF_TEXT, "lstrip": False}, "pad_token": None}
    assert read(tmp_path, bpe.to_json(), tokenizer_config=harmless, special_tokens_map=harmless)[0] is not None
    found, why = read(tmp_path, bpe.to_json(), **files)
    assert found is None and why and "\n" not in why


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"model": []},
        {"model": {"vocab": {}}},
        {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 4_294_967_295}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "bc": 1}, "unk_token": "a"}},
    ],
)
def test_a_tokenizer_of_another_kind_is_none(stored, tmp_path, capfd):
    found, why = read(tmp_path, {"version": "1.0", "added_tokens": [], **stored})
    assert found is None and why
    assert capfd.readouterr() == ("", "")  # the library would tell of ids that are left out


def test_the_characters_of_another_layout(tmp_path):
    own = CharTokenizer("abc", True)
    content = tokenizer_files.to_json(own, tokenizer_files.names(own) or [])
    found, _ = read(tmp_path, json.dumps(dict(reversed(json.loads(content).items()))))
    assert found is not None and same_ids(found, own)


def test_more_ids_than_rows_are_refused(tmp_path):
    oracle(vocab_size=256, n_embd=8, n_layer=1).save_pretrained(tmp_path)
    tokenizer_files.write(BytesTokenizer(), tmp_path, 32)
    with pytest.raises(UserError) as refusal:
        sources.read(str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}: its tokenizer has 257 ids, but wte.weight 256 rows"


def test_weights_with_a_tokenizer_that_is_not_known(tmp_path):
    """It is said why, and no dataset of ours is taken for theirs."""
    oracle(vocab_size=257, n_embd=8, n_layer=1).save_pretrained(tmp_path)
    tokenizer_files.write(BytesTokenizer(), tmp_path, 32)
    (tmp_path / "added_tokens.json").write_text('{"<user>": 257}')
    found = sources.read(str(tmp_path))
    assert found.tokenizer is None and any("<user>" in note for note in found.notes)
    with pytest.raises(UserError, match=r"not known here.*<user>"):
        found.known_tokenizer()
    with pytest.raises(UserError, match=r"not known here.*<user>"):
        found.refuse_other_tokenizer(BytesTokenizer(), "data")
    found.refuse_other_tokenizer(tokenizers.load("ids:257", None), "data")  # it may be that one


def test_ids_alone_say_nothing_but_how_many():
    ids, bytes_ = tokenizers.load("ids:257", None), BytesTokenizer()
    for one, other in ((ids, bytes_), (bytes_, ids)):
        Pretrained("made", of(257), 32, {}, one).refuse_other_tokenizer(other, "data")
    with pytest.raises(UserError, match="trained with ids:258"):
        Pretrained("made", of(258), 32, {}, tokenizers.load("ids:258", None)).refuse_other_tokenizer(bytes_, "data")
