"""From runs to a band, and a run beside it: with real, tiny training."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from overnight import api
from overnight.bands.band import read
from overnight.errors import UserError
from overnight.report import bands as of_runs
from overnight.report.run_data import read_run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import make_band


@pytest.fixture(scope="module")
def band(overnight, dataset, tiny, tmp_path_factory):
    """The band of two runs, from the file that the script writes."""
    folder = tmp_path_factory.mktemp("band")
    for seed in (1, 2):
        overnight("train", "gpt2-tiny", "--data", dataset, "--out", folder / f"{seed}", "--seed", seed, *tiny,
                  "--sample.every", "0")  # fmt: skip
    out = make_band.write([folder / "1", folder / "2"], ["overnight", "train", "gpt2-tiny"], folder / "band.json")
    assert json.loads(out.read_text())["made"]["command"] == "overnight train gpt2-tiny"
    return folder, read(out)


def test_a_run_is_told_where_it_lies(band, overnight, dataset, tiny, tmp_path, monkeypatch):
    _, found = band
    assert sorted(found.losses) == [0, 5, 10, 12]
    assert found.dataset["source"].startswith("stdlib (Python 3")
    # two seeds say little: as if six had come out as these two
    six = {step: tuple(a + (b - a) * i / 5 for i in range(6)) for step, (a, b) in found.losses.items()}
    found = dataclasses.replace(found, seeds=tuple(range(6)), losses=six)
    monkeypatch.setattr(api, "find_band", lambda preset: found)
    monkeypatch.setattr(of_runs, "find", lambda preset: found)
    flags = [*tiny, "--sample.every", "0", "--seed", "3"]
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "fresh", *flags)
    assert "step 5: validation loss" in done.stdout
    assert done.stdout.count("; inside the band\n") == 3
    assert "inside the band: validation loss" in done.stdout
    page = (tmp_path / "fresh" / "report.html").read_text()
    assert "Inside the band: validation loss" in page
    assert "6 seeds of gpt2-tiny" in page  # the legend of the shaded part of the chart
    wrong = ["--train.tokens-per-step", "32", "--optim.lr", "1e-6"]
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "wrong", *flags, *wrong)
    assert "above the band by" in done.stdout
    said = next(line for line in done.stdout.splitlines() if line.startswith("likely causes"))
    assert said.startswith("likely causes, the likeliest first: batch: train.tokens_per_step is 32, there 256; ")
    assert "learning rate: optim.lr is 1e-06, there 0.003" in said


def test_a_run_that_ends_before_the_band_begins_is_told_nothing(band, monkeypatch):
    folder, found = band
    run = read_run(folder / "1")
    for first, told in ((12, True), (13, False)):
        later = dataclasses.replace(found, losses={0: found.losses[0], first: found.losses[12]})
        monkeypatch.setattr(of_runs, "find", lambda preset, later=later: later)
        assert (of_runs.verdict(run) is not None) == (of_runs.reference(run) is not None) == told


def test_what_makes_no_band_is_refused(band, tmp_path):
    folder, _ = band
    one, two = read_run(folder / "1"), read_run(folder / "2")
    with pytest.raises(UserError, match="two of the runs have the same seed"):
        of_runs.make_band([one, one], {})
    with pytest.raises(UserError, match="2 runs or more"):
        of_runs.make_band([one], {})
    two.config["recipe"]["optim"]["lr"] = 1.0
    with pytest.raises(UserError, match="differ in more than the seed"):
        of_runs.make_band([one, two], {})
    two = read_run(folder / "2")
    two.attempts[-1]["dataset"]["fingerprint"] = "0"
    with pytest.raises(UserError, match="other data"):
        of_runs.make_band([one, two], {})
    two = read_run(folder / "2")
    two.config["recipe"]["train"]["steps"] = one.config["recipe"]["train"]["steps"] = 100
    with pytest.raises(UserError, match="not finished"):
        of_runs.make_band([one, two], {})
