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
    for use in (lambda: train(name, []), lambda: needs_texts(name), lambda: load(name, None, trusted=True)):
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
    for tokenizer in (train(name, []), load(name, None, trusted=True)):
        assert tokenizer.name == name
        assert tokenizer.encode("ab").tolist() == [97, 98]
    monkeypatch.setitem(TOKENIZERS, "mine", Factory(lambda *_: load("bytes", None), lambda *_: load("bytes", None)))
    assert load("mine", None).vocab_size == 257


def test_a_stranger_s_folder_imports_nothing(tmp_path, monkeypatch):
    """The name comes from a manifest or a run's configuration, the module lies in the current folder."""
    (tmp_path / "evil_tokenizer.py").write_text("import pathlib\npathlib.Path('executed').touch()\n" + OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    name = "evil_tokenizer:factory"
    for allowed in (None, "", "another:factory", "evil_tokenizer", ":"):
        if allowed is None:
            monkeypatch.delenv("OVERNIGHT_TRUST", raising=False)
        else:
            monkeypatch.setenv("OVERNIGHT_TRUST", allowed)
        with pytest.raises(UserError, match=rf"runs the code .* OVERNIGHT_TRUST='{name}'") as told:
            load(name, None)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError) as told:
        load("a\nb:c", None)
    assert "\n" not in str(told.value)
    monkeypatch.setenv("OVERNIGHT_TRUST", f"another:factory,{name}")
    assert load(name, None).name == name
    assert (tmp_path / "executed").exists()


def test_a_dataset_that_names_code_is_refused_by_those_who_read_it(tmp_path, monkeypatch):
    from overnight.data.dataset import Manifest, load_tokenizer
    from overnight.data.prepare import PrepareOptions, prepare
    from overnight.data.sources import open_source

    (tmp_path / "my_tokenizer.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 500)
    options = PrepareOptions(tokenizer="my_tokenizer:factory", workers=1)
    source = open_source("files", [str(tmp_path / "text.txt")])
    prepare(source, tmp_path / "data", options)  # named by the user
    with pytest.raises(UserError, match="OVERNIGHT_TRUST"):
        load_tokenizer(Manifest.read(tmp_path / "data"))
    monkeypatch.setenv("OVERNIGHT_TRUST", "my_tokenizer:factory")
    assert load_tokenizer(Manifest.read(tmp_path / "data")).vocab_size == 257


def test_importing_it_imports_nothing_heavy():
    heavy = {"tiktoken", "tokenizers", "transformers", "torch", "regex"}
    script = f"import sys, overnight.tokenizers; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
