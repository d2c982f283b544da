"""`overnight eval`: the loss that the model itself has, kept as a baseline and drawn in reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from overnight.data.dataset import Manifest
from overnight.exchange import sources
from overnight.loader import TokenStream


@pytest.fixture(scope="module")
def run(overnight, dataset, tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(dataset, folder / "data")
    overnight("train", "gpt2-tiny", "--data", folder / "data", "--out", folder / "run", *tiny)
    return folder / "run"


def plain_loss(run: Path, split: str) -> float:
    """The mean loss over the whole split, window by window, from logits."""
    found = sources.read(str(run))
    gpt, data = found.build(), Manifest.read(run.parent / "data")
    stream = TokenStream(data.shard_paths(split))
    ids = torch.tensor(stream.read(0, stream.length).astype("int64"))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, found.block_size):
            window = ids[start : start + found.block_size + 1]
            total += float(F.cross_entropy(gpt(window[None, :-1])[0], window[1:], reduction="sum"))
    return total / (len(ids) - 1)


def test_the_loss_is_that_of_a_plain_loop(overnight, run):
    found = json.loads(overnight("eval", run, "--json", "--device", "cpu").stdout)
    assert found["loss"] == pytest.approx(plain_loss(run, "val"), abs=1e-5)
    assert found["tokens"] == Manifest.read(run.parent / "data").splits["val"]["tokens"] - 1
    some = json.loads(overnight("eval", run, "--split", "train", "--tokens", "1k", "--json").stdout)
    assert (some["split"], some["tokens"]) == ("train", 1000)
    assert "bits per byte" in overnight("eval", run, "--tokens", "500").stdout


def test_a_baseline_is_kept_once_and_drawn(overnight, run):
    for tokens in ("2k", "3k"):
        overnight("eval", run, "--tokens", tokens, "--save-baseline")
    kept = json.loads((run.parent / "data" / "baselines.json").read_text())["baselines"]
    assert [(entry["name"], entry["tokens"]) for entry in kept] == [("run at step 12", 3000)]
    overnight("report", run)
    page = (run / "report.html").read_text()
    assert 'class="level"' in page and "run at step 12" in page
    (run.parent / "data" / "baselines.json").write_text(
        '{"baselines": [{"name": "<b>", "split": "val", "loss": null}, 3]}'
    )
    overnight("report", run)
    assert 'class="level"' not in (run / "report.html").read_text().partition("<script")[0]


def test_what_cannot_be_evaluated(overnight, run, tmp_path):
    from overnight.data.prepare import PrepareOptions, prepare
    from overnight.data.sources import open_source

    prepare(open_source("stdlib"), tmp_path / "bpe", PrepareOptions(tokenizer="bpe:300", limit_tokens=20_000))
    other = overnight("eval", run, "--data", tmp_path / "bpe", check=False)
    assert other.returncode == 2 and "was trained with bytes" in other.stderr
    nowhere = overnight("eval", tmp_path / "typo", check=False)
    assert nowhere.returncode == 2 and nowhere.stderr.count("\n") == 1
