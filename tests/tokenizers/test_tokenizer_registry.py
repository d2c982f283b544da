"""Names, the files that belong to them, and tokenizers of one's own."""

import subprocess
import sys

import numpy as np
import pytest

from overnight.errors import UserError
from overnight.tokenizers import TOKENIZERS, Factory, dtype_for, load, needs_texts, train

OWN = """
from overnight.tokenizers import Factory, load

def make(name, *_):
    tokenizer = load("bytes", None)
    tokenizer.name = name
    return tokenizer

factory = Factory(train=make, load=make)
"""


def test_dtypes():
    assert dtype_for(50257) == dtype_for(65536) == np.uint16
    assert dtype_for(65537) == np.uint32


def test_which_need_texts():
    assert [needs_texts(name) for name in ("gpt2", "bytes", "chars", "bpe:4096")] == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt3", r"no tokenizer 'gpt3' \(did you mean gpt2\?\)"),
        ("", "no tokenizer ''"),
        ("gpt2:5", "gpt2 has no size"),
        ("chars:", "chars has no size"),
        ("bpe", "bpe:SIZE"),
        ("no_such_package.here:factory", "cannot import"),
        (".:factory", "cannot import"),
        (":", "cannot import"),
        ("os:nothing", "cannot import"),
        ("os:abort", "not an overnight.tokenizers.Factory"),  # and is not called
    ],
)
def test_bad_names_are_one_line(name, message):
    for use in (lambda: train(name, []), lambda: needs_texts(name), lambda: load(name, None)):
        with pytest.raises(UserError, match=message) as told:
            use()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["chars", "bpe:300"])
def test_absent_and_unreadable_files(tmp_path, name):
    with pytest.raises(UserError, match="there is none"):
        load(name, None)
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load(name, tmp_path / "tokenizer.json")
    file = tmp_path / "broken.json"
    for content in (b"\xff\xfe", b"", b"{", b"[]", b"{}", b"null"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.json") as told:
            load(name, file)
        assert "\n" not in str(told.value)


def test_one_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_tokenizer.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_tokenizer:factory"
    assert not needs_texts(name)
    for tokenizer in (train(name, []), load(name, None)):
        assert tokenizer.name == name
        assert tokenizer.encode("ab").tolist() == [97, 98]
    monkeypatch.setitem(TOKENIZERS, "mine", Factory(lambda *_: load("bytes", None), lambda *_: load("bytes", None)))
    assert load("mine", None).vocab_size == 257


def test_importing_it_imports_nothing_heavy():
    heavy = {"tiktoken", "tokenizers", "transformers", "torch", "regex"}
    script = f"import sys, overnight.tokenizers; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
