"""Several corpora in one run: exact proportions, each corpus in its own order, nothing that a resume could change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.data.dataset import Manifest
from overnight.data.mixture import Mixture
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError
from overnight.evals.loss import Loss, mixed
from overnight.loader import TokenDataset, TokenStream
from overnight.mixing import MixedDataset, turns

T = 8


def corpus(folder: Path, tokens: int, first: int) -> TokenDataset:
    """A corpus whose ids say which corpus and where: first, first + 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "train_000000.npy", np.arange(first, first + tokens, dtype=np.uint16))
    return TokenDataset(TokenStream([folder / "train_000000.npy"]), T, seed=3)


@pytest.fixture
def mix(tmp_path: Path) -> MixedDataset:
    """a has 1,000 tokens, b 300: b goes through several epochs."""
    return MixedDataset({"a": corpus(tmp_path / "a", 1000, 0), "b": corpus(tmp_path / "b", 300, 10_000)}, [7, 3])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_at_every_moment_each_corpus_has_had_its_share_to_less_than_one(weights):
    chosen, period = turns(weights), sum(weights)
    had = np.stack([np.cumsum(chosen == corpus) for corpus in range(len(weights))])
    share = np.outer(weights, np.arange(1, period + 1)) / period
    assert np.abs(had - share).max() < 1
    assert had[:, -1].tolist() == weights


def test_a_thousand_steps_have_the_proportions_to_one_sequence(mix):
    per_step = 13
    corpora, local = mix.locate(np.concatenate([mix.sequences(step, per_step) for step in range(1000)]))
    for step in range(1, 1001):
        had = np.bincount(corpora[: step * per_step], minlength=2)
        assert abs(had[0] - 0.7 * step * per_step) < 1
    for which in (0, 1):  # none left out, none twice
        assert local[corpora == which].tolist() == list(range(int((corpora == which).sum())))


def test_each_corpus_gives_its_own_sequences_in_its_own_order(mix):
    numbers = np.arange(400)
    inputs, targets = mix.tokens(numbers)
    corpora, local = mix.locate(numbers)
    for which, dataset in enumerate(mix.datasets):
        own_inputs, own_targets = dataset.tokens(local[corpora == which])
        assert (inputs[corpora == which] == own_inputs).all()
        assert (targets[corpora == which] == own_targets).all()
    assert ((inputs >= 10_000).all(axis=1) == (corpora == 1)).all()


@given(st.permutations(range(40)))
def test_a_sequence_does_not_depend_on_those_asked_for_with_it(tmp_path_factory, order):
    folder = tmp_path_factory.getbasetemp() / "mixed"
    mix = MixedDataset({"a": corpus(folder / "a", 500, 0), "b": corpus(folder / "b", 90, 9_000)}, [2, 1])
    together, _ = mix.tokens(np.arange(40))
    shuffled, _ = mix.tokens(np.array(order))
    assert (shuffled == together[list(order)]).all()


def test_epochs_are_each_corpus_own(mix):
    epochs = mix.epochs(1000)
    assert epochs == {"epoch": 300 * T / 300, "epoch_a": 700 * T / 1000, "epoch_b": 300 * T / 300}
    assert mix.epochs(0) == {"epoch": 0.0, "epoch_a": 0.0, "epoch_b": 0.0}


def test_an_epoch_of_a_corpus_shows_all_of_it(mix):
    per_epoch = mix.datasets[1].per_epoch
    numbers = np.arange(10 * per_epoch)
    corpora, _ = mix.locate(numbers)
    _, targets = mix.tokens(numbers[corpora == 1][:per_epoch])
    assert set(targets.ravel().tolist()) == set(range(10_000, 10_300))


def test_the_loss_of_a_mixture():
    both = mixed([Loss(2.0, 100, 300), Loss(4.0, 50, 100)], [3, 1])
    assert both.mean == pytest.approx(2.5)
    assert both.tokens == 150
    assert both.bits_per_byte == pytest.approx(2.5 / np.log(2) / (0.75 * 3 + 0.25 * 2), rel=1e-2)


# ---- folders and runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two datasets in bytes."""
    root = tmp_path_factory.mktemp("corpora")
    for name, seed in (("one", 0), ("two", 1)):
        options = PrepareOptions(tokenizer="bytes", limit_tokens=60_000, seed=seed)
        prepare(open_source("stdlib"), root / name, options)
    return root / "one", root / "two"


def test_a_mixture_is_read_from_its_text(folders, monkeypatch):
    one, two = folders
    mixture = Mixture.open(f"{one}:0.7,{two}:0.3")
    assert [(corpus.name, corpus.weight) for corpus in mixture.corpora] == [("one", 7), ("two", 3)]
    assert mixture.fingerprint == Mixture.open(mixture.path).fingerprint == Mixture.open(f"{one}:7,{two}:3").fingerprint
    assert mixture.fingerprint != Mixture.open(f"{one}:0.6,{two}:0.4").fingerprint
    assert [corpus.weight for corpus in Mixture.open(f"{one}:1/3,{two}:2/3").corpora] == [1, 2]
    alone = Mixture.open(one)
    assert (alone.path, alone.fingerprint) == (str(one.resolve()), Manifest.read(one).fingerprint)
    monkeypatch.chdir(one.parent)
    assert Mixture.open("one:7,two:3").path == mixture.path


def test_corpora_of_the_same_name_get_names_of_their_own(folders, tmp_path):
    copies = [Path(shutil.copytree(folders[0], tmp_path / name)) for name in ("a/x", "b/x", "c/x_1")]
    names = [corpus.name for corpus in Mixture.open(",".join(f"{copy}:1" for copy in copies)).corpora]
    assert names == ["x_2", "x_3", "x_1"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{one}:0.7,{two}", "is not DIR:WEIGHT"),
        ("{one}:0.7,{two}:x", "is not DIR:WEIGHT"),
        ("{one}:0.7,{two}:0", "above 0"),
        ("{one}:0.7,{two}:-1", "above 0"),
        ("{one}:1/0,{two}:1", "is not DIR:WEIGHT"),
        ("{one}:0.7,:0.3", "is not DIR:WEIGHT"),
        ("{one}:0.7,{one}/:0.3", "the same folder twice"),
        ("{one}:0.7,{two}x:0.3", "no dataset folder"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_one_line(folders, text, complaint):
    one, two = folders
    with pytest.raises(UserError, match=complaint) as refusal:
        Mixture.open(text.format(one=one, two=two))
    assert "\n" not in str(refusal.value)


def test_other_tokenizers_do_not_mix(folders, tmp_path):
    prepare(open_source("stdlib"), tmp_path / "bpe", PrepareOptions(tokenizer="bpe:300", limit_tokens=50_000))
    with pytest.raises(UserError, match="different tokenizers"):
        Mixture.open(f"{folders[0]}:1,{tmp_path / 'bpe'}:1")


def test_weights_that_hardly_repeat_are_refused():
    with pytest.raises(UserError, match="fewer digits"):
        turns([1_234_567, 2_345_678])


def trained(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_a_run_on_a_mixture_resumes_bit_exactly(folders, overnight, tiny, tmp_path):
    data = f"{folders[0]}:0.7,{folders[1]}:0.3"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shown = overnight("train", "gpt2-tiny", "--data", data, "--out", whole, *tiny).stdout
    assert "70.0% one" in shown
    overnight("train", "gpt2-tiny", "--data", data, "--out", parts, *tiny)
    for newest in ("step_00000012",):
        shutil.rmtree(parts / "checkpoints" / newest)
    overnight("train", parts)  # from step 8, with the data that the run remembers
    assert trained(parts) == trained(whole)
    weights = [path / "checkpoints" / "step_00000012" / "model.safetensors" for path in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    evals = [line for line in trained(whole) if line["kind"] == "eval"]
    assert all(
        line["val_loss"] == pytest.approx(0.7 * line["val_loss_one"] + 0.3 * line["val_loss_two"]) for line in evals
    )
    assert {"epoch", "epoch_one", "epoch_two"} <= trained(whole)[-2].keys() | trained(whole)[-1].keys()
    assert "two" in (whole / "report.html").read_text()

    other = overnight(
        "train", "gpt2-tiny", "--data", f"{folders[0]}:0.6,{folders[1]}:0.4", "--out", whole, *tiny, check=False
    )
    assert other.returncode == 2
    assert "not the dataset" in other.stderr
