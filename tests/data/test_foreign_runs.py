"""What only the tokens of token files tell, and training on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from token_files import (
    Overnight,
    begun,
    ended,
    gpt2_documents,
    texts,
    write_build_nanogpt,
    write_chars,
    write_llm_c,
    write_nanogpt,
)

from overnight.data.dataset import Manifest
from overnight.data.foreign import measure
from overnight.data.foreign.measure import measured
from overnight.data.inspect import random_documents
from overnight.data.statistics import statistics
from overnight.data.streams import Stream
from overnight.tokenizers import train

DOCUMENTS = gpt2_documents(60)
BEGUN, ENDED = begun(DOCUMENTS), ended(DOCUMENTS)
CUT = int(len(BEGUN) * 0.8)


# ---- what only their tokens tell


@pytest.mark.parametrize("write", ["begun", "ended"])
def test_documents_and_bytes_are_counted(tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CHUNK", 97)
    if write == "begun":
        write_llm_c(tmp_path, BEGUN, begun(DOCUMENTS[:7]))
    else:
        write_nanogpt(tmp_path, ENDED, ended(DOCUMENTS[:7]))
    manifest = measured(Manifest.read(tmp_path))
    decode = train("gpt2", ()).decode_bytes
    for split, documents in (("train", DOCUMENTS), ("val", DOCUMENTS[:7])):
        assert manifest.splits[split]["documents"] == len(documents)
        assert manifest.splits[split]["bytes"] == sum(len(decode(document)) for document in documents)
    assert manifest.totals["documents"] == 67


@pytest.mark.parametrize("write", ["begun", "ended", "cut", "ended and cut"])
def test_documents_are_found_where_they_are(tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with all its tokens, across shards; a piece of one at either end of a split is a document, too."""
    monkeypatch.setattr(measure, "CHUNK", 97)
    if write == "begun":
        write_llm_c(tmp_path, BEGUN, BEGUN)
    elif write == "cut":
        write_build_nanogpt(tmp_path, np.concatenate([BEGUN[:300], BEGUN[3:]]), shard=300)
    else:
        write_nanogpt(tmp_path, ENDED if write == "ended" else ENDED[3:-4], ENDED)
    manifest = measured(Manifest.read(tmp_path))
    found, decode = Stream(manifest, "train"), train("gpt2", ()).decode_bytes
    starts = np.concatenate([found.starts(shard) for shard in range(len(found.borders) - 1)])
    pieces = [decode(found.read(start, found.end(start))) for start in starts.tolist()]
    expected = [decode(document) for document in DOCUMENTS]
    if "cut" in write:
        expected[0] = decode(DOCUMENTS[0][2 if write == "cut" else 3 :])
    if write == "ended and cut":
        expected[-1] = decode(DOCUMENTS[-1][:-3])
    assert pieces == expected
    assert manifest.splits["train"]["documents"] == len(DOCUMENTS)
    assert sum(shard["documents"] for shard in manifest.splits["train"]["shards"]) == len(DOCUMENTS)


def test_random_documents_and_statistics(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path, np.concatenate([BEGUN, BEGUN]), shard=len(BEGUN))
    manifest, decode = measured(Manifest.read(tmp_path)), train("gpt2", ()).decode
    whole = [decode(document) for document in DOCUMENTS]
    documents = random_documents(manifest, 200, seed=0)
    assert len(documents) == 120
    for document in documents:
        assert whole[document["row"]].startswith(document["text"].removesuffix(" ..."))
        assert document["file"].startswith(f"edufineweb_{document['split']}_00000")
    found = statistics(manifest)
    assert found["lengths"]["val"]["documents"] == 60
    assert found["duplicates"]["val_documents_in_train"] == 60


def test_shown_and_checked(tmp_path: Path, overnight: Overnight) -> None:
    write_llm_c(tmp_path, BEGUN, BEGUN)
    shown = overnight("data", tmp_path).stdout
    assert "60 documents" in shown
    assert "gpt2 in the headers" in shown
    told = json.loads(overnight("data", tmp_path, "--json").stdout)
    assert (told["format"], told["splits"]["val"]["documents"]) == ("llm.c", 60)
    assert "no hashes of these 2 files are known" in overnight("data", tmp_path, "--check").stdout


def test_ids_of_another_tokenizer_are_found(tmp_path: Path, overnight: Overnight) -> None:
    write_nanogpt(tmp_path, ENDED, np.append(ENDED, 50257))
    for flags in ((), ("--check",)):
        done = overnight("data", tmp_path, *flags, check=False)
        assert done.returncode == 2
        assert f"{tmp_path / 'val.bin'} holds id 50257, but gpt2 has 50257 ids" in done.stderr


# ---- training on them


def run(overnight: Overnight, tiny: list[str], data: Path, out: Path, *flags: str, check: bool = True) -> str:
    done = overnight("train", "gpt2-124m", "--data", data, "--out", out, *tiny, *flags, check=check)
    return done.stdout + done.stderr


def test_a_run_on_characters_goes_on_samples_and_reports(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    write_chars(tmp_path / "data", "def " + "\n".join(texts(80)))
    out = tmp_path / "run"
    run(overnight, tiny, tmp_path / "data", out, "--train.steps", "4")
    assert "goes on   from step 4 of 6" in run(overnight, tiny, tmp_path / "data", out, "--train.steps", "6")
    assert json.loads((out / "tokenizer.json").read_text())["kind"] == "chars"
    shutil.rmtree(tmp_path / "data")
    assert len(overnight("sample", out, "--prompt", "the", "--max-new-tokens", "5").stdout) >= 9
    report = (out / "report.html").read_text()
    assert "nanogpt" in report
    assert "is not there now" not in report


def test_a_run_on_ids_alone_has_no_bits_per_byte(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    ids = np.random.default_rng(0).integers(0, 90, 3000)
    write_nanogpt(tmp_path / "data", ids, ids[:500], {"vocab_size": 90})
    assert "'def' is not a number from 0 to 89" in run(
        overnight, tiny, tmp_path / "data", tmp_path / "run", check=False
    )
    told = run(overnight, tiny, tmp_path / "data", tmp_path / "run", "--sample.prompt", "1 2", "--train.steps", "2")
    assert "bits per byte" not in told
    assert "sample:  1 2 " in told


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "the training shards hold id 4294967295"),
        ("val", "there is no token 4294967295 in the tokenizer gpt2"),
    ],
)
def test_an_id_beyond_the_vocabulary_ends_a_run_with_one_line(
    tmp_path: Path, overnight: Overnight, tiny: list[str], split: str, message: str
) -> None:
    good, bad = np.zeros(400, np.int32), np.full(400, -1, np.int32)  # build-nanogpt reads int32: -1 must be caught
    for name in ("train", "val"):
        np.save(tmp_path / f"a_{name}_000000.npy", bad if name == split else good)
    told = run(overnight, tiny, tmp_path, tmp_path / "run", check=False)
    assert message in told
    assert "Traceback" not in told


def test_data_can_be_changed_only_with_another_run(tmp_path: Path, overnight: Overnight, tiny: list[str]) -> None:
    write_chars(tmp_path / "a", "def " + "\n".join(texts(80)))
    write_chars(tmp_path / "b", "def " + "\n".join(texts(80, seed=1)))
    run(overnight, tiny, tmp_path / "a", tmp_path / "run", "--train.steps", "1")
    told = run(overnight, tiny, tmp_path / "b", tmp_path / "run", "--train.steps", "1", check=False)
    assert "is not the dataset" in told
