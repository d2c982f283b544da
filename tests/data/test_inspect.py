"""`overnight data`: what is in a folder, and whether it is still what was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import ListSource, environment, overnight, texts

from overnight.data.dataset import Manifest, fingerprint, load_tokenizer
from overnight.data.inspect import check, random_documents
from overnight.data.prepare import PrepareOptions, prepare
from overnight.errors import UserError

CORPUS = texts(50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(ListSource(CORPUS), tmp_path / "data", PrepareOptions(tokenizer="bpe:300", shard_tokens=3000, workers=1))
    return tmp_path / "data"


def test_shown(folder: Path) -> None:
    done = overnight("data", folder, "--documents", 4)
    assert done.returncode == 0, done.stderr
    for words in ("bpe:300, 300 ids, uint16", "train", "val", "licence unknown", "seed 0", "bytes a token", "list row"):
        assert words in done.stdout
    assert done.stdout.count("list row") == 4


def test_json(folder: Path) -> None:
    done = overnight("data", folder, "--json", "--documents", 2)
    told = json.loads(done.stdout)
    assert {name: told[name] for name in told if name not in ("random_documents", "statistics")} == json.loads(
        (folder / "manifest.json").read_text()
    )
    assert len(told["random_documents"]) == 2


def test_random_documents_are_whole_and_seeded(folder: Path) -> None:
    manifest = Manifest.read(folder)
    found = random_documents(manifest, 1000, seed=0)
    assert sorted(document["row"] for document in found) == list(range(50))
    for document in found:
        assert CORPUS[document["row"]].startswith(document["text"].removesuffix(" ..."))
    assert random_documents(manifest, 5, seed=1) == random_documents(manifest, 5, seed=1) != found[:5]


def test_check_names_the_file(folder: Path) -> None:
    assert overnight("data", folder, "--check").stdout.startswith(f"{folder}: all ")
    files = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{path.name} is not what was written"):
            check(Manifest.read(folder))
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name} cannot be read"):
            check(Manifest.read(folder))
        path.write_bytes(content)
    files[-1].write_bytes(b"x")
    done = overnight("data", folder, "--check")
    assert done.returncode == 2 and files[-1].name in done.stderr and done.stderr.count("\n") == 1


def changed(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(dtype="uint32"), "fingerprint"),
        (lambda m: m["splits"]["val"].update(tokens=1), "tokens of split val"),
        (lambda m: m["splits"]["val"]["shards"].pop(), "of split val"),
    ],
)
def test_check_of_the_manifest_itself(folder: Path, change: Any, told: str) -> None:
    changed(folder, change)
    with pytest.raises(UserError, match=f"manifest.json was changed.*{told}"):
        check(Manifest.read(folder))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(format="x"), "does not describe a dataset"),
        (lambda m: m.update(version=2), "version 2, this overnight reads version 1"),
        (lambda m: m.pop("version"), "version None"),
        (lambda m: m.pop("tokenizer"), "lacks 'tokenizer'"),
        (lambda m: m["tokenizer"].pop("name"), "lacks 'tokenizer.name'"),
        (lambda m: m["splits"].pop("val"), "lacks 'splits.val'"),
        (lambda m: m["splits"]["train"]["shards"][0].pop("sha256"), r"lacks 'splits.train.shards\[0\].sha256'"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.npy"), "outside its folder"),
        (lambda m: m["tokenizer"].update(file="/etc/passwd"), "outside its folder"),
        (lambda m: m["splits"]["train"].update(documents=10**15), "the documents of split train are not those"),
        (lambda m: m.update(sources=["x"]), r"lacks 'sources\[0\].name'"),
        (lambda m: m.update(totals={}), "lacks 'totals.tokens'"),
    ],
)
def test_manifests_that_cannot_be_read(folder: Path, change: Any, told: str) -> None:
    changed(folder, change)
    with pytest.raises(UserError, match=told) as caught:
        Manifest.read(folder)
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)


def test_no_manifest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no dataset folder"):
        Manifest.read(tmp_path / "nope")
    with pytest.raises(UserError, match="is a file"):
        Manifest.read(folder / "manifest.json")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Manifest.read(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a dataset folder"):
        Manifest.read(folder)
    (folder / ".work").mkdir()
    with pytest.raises(UserError, match="unfinished"):
        Manifest.read(folder)


def test_readers(folder: Path) -> None:
    manifest = Manifest.read(folder)
    assert fingerprint(manifest.tokenizer, manifest.dtype, manifest.splits) == manifest.fingerprint
    assert load_tokenizer(manifest).decode(load_tokenizer(manifest).encode("what?")) == "what?"
    assert sum(len(np.load(path)) for path in manifest.shard_paths("train")) == manifest.splits["train"]["tokens"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("overnight.data.dataset", ["torch", "pyarrow", "tiktoken"]),
        ("overnight.data.prepare", ["torch", "tokenizers", "pyarrow.parquet"]),
    ],
)
def test_imports_are_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*(name for name in {absent} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
