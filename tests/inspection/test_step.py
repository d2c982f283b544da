"""What a step was trained on, against the files that it was trained from."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from overnight.data.dataset import Manifest
from overnight.data.mixture import Mixture
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.data.streams import Stream
from overnight.loader import TokenDataset, TokenStream
from overnight.origins import Origins
from overnight.runs import RunFolder

Overnight = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of short documents that say where they are from; many fit into a sequence, some into none."""
    home = tmp_path_factory.mktemp("corpora")
    draws = np.random.default_rng(0)
    for name in ("one", "two"):
        (home / f"{name}.src").mkdir()
        for file in "ab":
            rows = [f"{name} {file} {row} " + "x" * int(draws.integers(0, 90)) for row in range(200)]
            text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
            (home / f"{name}.src" / f"{file}.jsonl").write_text(text)
        options = PrepareOptions(tokenizer="bytes", shard_tokens=4096)
        prepare(open_source("files", [home / f"{name}.src"]), home / name, options)
    return home


def test_the_documents_of_a_sequence_are_those_whose_text_it_has(corpora: Path) -> None:
    manifest = Manifest.read(corpora / "one")
    data = TokenDataset(TokenStream(manifest.shard_paths("train")), 64, seed=3)
    numbers = np.arange(0, 2 * data.per_epoch, 19)
    stream, seen = Stream(manifest, "train"), 0
    for one in Origins(Mixture.open(corpora / "one"), data).of(numbers):
        ids, text = data.stream.read(one["position"], 65), b""
        for document in one["documents"]:
            begin = max(document["start"], one["position"]) if document is one["documents"][0] else document["start"]
            text += stream.read(begin, begin + document["tokens"]).astype("<u2").tobytes()
            beginning = stream.beginning(document["start"])
            assert beginning.startswith(f"one {document['file'][0]} {document['row']} ")
        assert text == ids.astype("<u2").tobytes()
        seen += len(one["documents"])
    assert seen > len(numbers)


def test_a_step_of_a_mixture(corpora: Path, tmp_path: Path, tiny: list[str], overnight: Overnight) -> None:
    run = tmp_path / "run"
    data = f"{corpora / 'one'}:3,{corpora / 'two'}:1"
    overnight("train", "shakespeare-char-cpu", "--data", data, "--out", run, *tiny, "--log.every", 5, "--eval.every", 0)
    seen = json.loads(overnight("inspect", run, "--step", 5, "--json").stdout)
    assert [one["number"] for one in seen["sequences"]] == list(range(32, 40))
    assert [one["corpus"] for one in seen["sequences"]].count("two") == 2
    line = next(line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["step"] == 5)
    assert (seen["lr"], seen["loss"], seen["grad_norm"]) == (line["lr"], line["loss"], line["grad_norm"])
    assert seen["decisions"]["micro_batch"] == RunFolder.open(run).decided("micro_batch", 4)
    for one in seen["sequences"]:
        assert one["documents"][0]["file"] in ("a.jsonl", "b.jsonl")
    assert all(one["text"].split()[-1] for one in seen["sequences"][:4])
    told = overnight("inspect", run, "--step", 6).stdout
    assert f"{run}: step 6 of 12, batch 5 of " in told
    assert "at step 5, the last one before that was logged" in told
    assert "sequence 40 of " in told
    for step in (0, 13):
        done = overnight("inspect", run, "--step", step, check=False)
        assert (done.returncode, done.stderr) == (2, f"overnight: {run} has the steps 1 to 12, and no step {step}\n")


def test_the_guards_decisions_and_dumps_are_told(
    corpora: Path, tmp_path: Path, tiny: list[str], overnight: Overnight
) -> None:
    run = tmp_path / "run"
    overnight("train", "shakespeare-char-cpu", "--data", corpora / "one", "--out", run, *tiny, "--eval.every", 0)
    folder = RunFolder.open(run)
    folder.decide(4, "guard", {"action": "leave out", "step": 6, "batch": 5}, "the loss is nan")
    dump = run / "dumps" / "step_00000006"
    dump.mkdir(parents=True)
    content = {"format": "overnight-dump", "reason": "the loss is nan", "again": {"loss": 2.5}}
    (dump / "dump.json").write_text(json.dumps(content))
    told = overnight("inspect", run, "--step", 6).stdout
    assert "batch 6 of " in told
    assert "guard: leave out (the loss is nan)" in told
    assert f"dump: {dump}: the loss is nan; computed once more the loss was 2.5000" in told
    (dump / "dump.json").write_text("{")
    assert "dump.json is missing or was changed" in overnight("inspect", run, "--step", 6).stdout


def test_a_dataset_that_was_moved_or_changed_is_said(
    corpora: Path, tmp_path: Path, tiny: list[str], overnight: Overnight
) -> None:
    data, moved, run = tmp_path / "data", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(corpora / "one", data)
    overnight("train", "shakespeare-char-cpu", "--data", data, "--out", run, *tiny, "--eval.every", 0)
    before = overnight("inspect", run, "--step", 3, "--json").stdout
    data.rename(moved)
    done = overnight("inspect", run, "--step", 3, check=False)
    assert done.returncode == 2
    assert "is not where it was" in done.stderr and "--data DIR" in done.stderr and done.stderr.count("\n") == 1
    after = overnight("inspect", run, "--step", 3, "--json", "--data", moved).stdout
    ours, theirs = (json.loads(text)["sequences"] for text in (after, before))
    assert [{**one, "corpus": "data"} for one in ours] == theirs
    done = overnight("inspect", run, "--step", 3, "--data", corpora / "two", check=False)
    assert done.returncode == 2
    assert "is not the dataset that" in done.stderr and done.stderr.count("\n") == 1


def test_where_ids_do_not_tell_of_documents_it_says_so(tmp_path: Path, tiny: list[str], overnight: Overnight) -> None:
    """nanoGPT's characters have no end of text."""
    folder, run, letters = tmp_path / "chars", tmp_path / "run", "abcdefgh"
    folder.mkdir()
    for split in ("train", "val"):
        np.random.default_rng(0).integers(0, len(letters), 4000).astype("<u2").tofile(folder / f"{split}.bin")
    meta = {"vocab_size": 8, "stoi": {c: i for i, c in enumerate(letters)}, "itos": dict(enumerate(letters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    overnight("train", "shakespeare-char-cpu", "--data", folder, "--out", run, *tiny, "--sample.prompt", "a")
    told = overnight("inspect", run, "--step", 2).stdout
    assert told.count("ids alone do not tell where documents begin") == 8
