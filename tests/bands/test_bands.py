"""The verdict on a run beside its preset's band, and the file."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import resources

import made_band as made
import numpy as np
import pytest

from overnight.bands import find, in_the_run, judge
from overnight.bands.band import FLOOR, LEVEL, from_json, read
from overnight.bands.text import same_text
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.spread import next_run

# ---- the interval


@pytest.mark.parametrize("seeds", [5, 6, 10])
def test_fresh_seeds_pass(seeds):
    random = np.random.default_rng(seeds)
    inside = total = 0
    for _ in range(60):
        band = made.band(made.runs(seeds, random))
        for losses in made.runs(50, random):
            inside += judge(band, made.run(), made.looks(losses)).name == "inside"
            total += 1
    assert inside / total >= 0.99


def test_a_band_is_no_wider_than_it_must_be():
    random = np.random.default_rng(0)
    halves = [made.band(made.runs(6, random)).limits[2000].half for _ in range(100)]
    # a known spread would need 2.8 of it for LEVEL, one estimated from 6 runs 5.2
    assert np.mean(halves) < 1.25 * next_run(made.SPREAD, 6, LEVEL)


def test_seeds_that_agree_by_chance_make_no_narrow_band():
    losses = made.runs(6, np.random.default_rng(1))
    losses[:, 3] = losses[0, 3]  # all the same at step 1500
    limits = made.band(losses).limits
    neighbours = [losses[:, i].var(ddof=1) for i in (2, 3, 4)]
    assert limits[1500].spread == pytest.approx(math.sqrt(np.mean(neighbours)))
    losses[:, 1:] = losses[0, 1:]
    limits = made.band(losses).limits
    assert limits[2000].spread == pytest.approx(FLOOR * losses[0, 4])
    assert limits[0].spread == pytest.approx(losses[:, 0].std(ddof=1))  # the initial models' is another thing
    assert limits[500].spread < limits[0].spread


# ---- the verdict


def test_inside_above_below():
    band = made.band()
    limits = band.limits[2000]
    for loss, name in (
        (limits.mean, "inside"), (limits.high, "inside"), (limits.high + 1e-6, "above"), (limits.low - 1e-6, "below"),
        (math.nan, "above"), (math.inf, "above"),
    ):  # fmt: skip
        found = judge(band, made.run(), made.looks([*made.MEANS[:-1], loss]))
        assert (found.name, found.place.step) == (name, 2000)
    assert (
        "above the band by 0.1000"
        in judge(band, made.run(), made.looks([*made.MEANS[:-1], limits.high + 0.1])).sentences()[0]
    )


def test_one_stray_look_on_the_way_is_no_verdict():
    strayed = [4.2, 2.4, 9.9, 1.95, 1.9]
    band = made.band()
    assert judge(band, made.run(), made.looks(strayed)).name == "inside"
    words = in_the_run(band, made.run().dataset)
    said = [words(look) for look in made.looks(strayed)]
    assert [text.split(" by ")[0] for text in said] == [
        "",
        *("inside the band",),
        "above the band",
        *2 * ["inside the band"],
    ]


def test_what_cannot_be_compared_says_why():
    band, means = made.band(), made.looks(made.MEANS)
    other_text = {**made.DATASET, "fingerprint": "0" * 64, "validation": {**made.TEXT, "head_sha256": "0" * 64}}
    old = {"fingerprint": "0" * 64, "path": "/nowhere"}
    several = {"fingerprint": "0" * 64, "corpora": []}
    for dataset, why in (
        (other_text, "made on a play (revision 1), and this validation text is another one"),
        (old, "does not say which text"), (several, "on several"),
    ):  # fmt: skip
        found = judge(band, made.run(dataset=dataset), means)
        assert found.name == "none"
        assert why in found.sentences()[0]
        assert [in_the_run(band, dataset)(look) for look in means] == [""] * 5
    elsewhere = [dataclasses.replace(look, step=look.step + 1) for look in means]
    assert "evaluated at others (--eval.every changes it)" in judge(band, made.run(), elsewhere).reason
    assert "111,539" in judge(band, made.run(), made.looks(made.MEANS, tokens=5000, size=5000)).reason
    assert judge(band, made.run(dataset={"fingerprint": "f" * 64}), means).name == "inside"  # an older run's entry


def test_a_part_of_the_text_is_compared_with_its_own_error_allowed_for():
    band = made.band()
    exact = band.limits[2000].half
    found = judge(band, made.run(), made.looks(made.MEANS, tokens=5000, size=5000, error=0.01))
    assert (found.place.high - found.place.low) / 2 == pytest.approx(exact + 3 * math.sqrt(2) * 0.01)


def test_another_tokenizer_is_compared_in_bits_per_byte():
    band = made.band()
    dataset = {**made.run().dataset, "fingerprint": "0" * 64, "tokenizer": {**made.TOKENIZER, "name": "bpe:512"}}
    tokens = 45_000
    bits = np.array(made.MEANS) / math.log(2)  # a character is a byte
    same = made.looks(bits * math.log(2) * 111_539 / tokens, tokens=tokens)
    found = judge(band, made.run(dataset=dataset), same)
    assert (found.name, found.place.unit) == ("inside", "bits per byte")
    assert found.place.value == pytest.approx(bits[-1])
    assert "tokenizer: the tokenizer is bpe:512, there chars" in found.sentences()[1]
    worse = made.looks(1.05 * bits * math.log(2) * 111_539 / tokens, tokens=tokens)
    found = judge(band, made.run(dataset=dataset), worse)
    assert found.name == "above"
    assert "bits per byte" in found.sentences()[0]
    assert found.sentences()[1].startswith("likely causes, the likeliest first: tokenizer:")


def test_the_causes_come_in_order():
    dataset = {**made.run().dataset, "fingerprint": "0" * 64, "tokenizer": {**made.TOKENIZER, "name": "bytes"},
               "train_bytes": 7}  # fmt: skip
    run = made.run(
        dataset=dataset, precision="bf16", seed=99, optim={"lr": 1e-2, "weight_decay": 0}, model={"n_layer": 2},
        train={"tokens_per_step": 64, "steps": 100}, data={"sequence_length": 32, "tokenizer": "bytes"},
    )  # fmt: skip
    found = judge(made.band(), dataclasses.replace(run, versions={"torch": "2.9.1"}), made.looks(np.add(made.MEANS, 1)))
    causes = [
        "data",
        "tokenizer",
        "batch",
        "precision",
        "learning rate",
        "length",
        "length",
        "model",
        "other",
        "versions",
    ]
    assert [one.cause for one in found.differences] == causes
    assert str(found.differences[2]) == "batch: train.tokens_per_step is 64, there 768"
    json.dumps(found.to_json(), allow_nan=False)


def test_nothing_that_differs_says_where_to_look():
    said = judge(made.band(), made.run(seed=99), made.looks(np.add(made.MEANS, 1))).sentences()
    assert said[1].startswith("its recipe is that of those runs; look at the data")
    other = {**made.run().dataset, "fingerprint": "0" * 64}
    said = judge(made.band(), made.run(dataset=other), made.looks(np.add(made.MEANS, 1))).sentences()
    assert "data: the dataset's fingerprint is 000000000000, there ffffffffffff" in said[1]


def test_the_same_text():
    one = {"fingerprint": "a", "validation": made.TEXT}
    assert same_text(one, {"fingerprint": "a"})
    assert same_text(one, {"fingerprint": "b"}) is None
    for change, same in (({}, True), ({"head_sha256": "x"}, False), ({"head_bytes": 5}, False), ({"bytes": 1}, False),
                         ({"bytes": 111_000}, True), ({"bytes": None}, True)):  # fmt: skip
        assert same_text(one, {"fingerprint": "b", "validation": {**made.TEXT, **change}}) is same


# ---- the file


def test_a_file_comes_back_as_it_was(tmp_path):
    band = made.band()
    (tmp_path / "band.json").write_text(json.dumps(band.to_json()))
    assert read(tmp_path / "band.json") == band


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"version": 2}, {"seeds": [1, 1, 2, 3, 4, 5]}, {"seeds": [1]}, {"steps": []},
        {"steps": [{"step": 1, "losses": [1.0]}]}, {"steps": None}, {"made": None}, {"recipe": 5}, {"val_tokens": "x"},
        {"steps": [{"step": 1, "losses": [1.0, 1.0, 1.0, 1.0, 1.0, math.nan]}]},
    ],
)  # fmt: skip
def test_what_is_no_band_is_one_line(change, tmp_path):
    with pytest.raises(UserError) as error:
        from_json({**made.band().to_json(), **change}, "here")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("here")
    for text in ("[]", "{", "{}", "5"):
        (tmp_path / "band.json").write_text(text)
        with pytest.raises(UserError, match="not a band"):
            read(tmp_path / "band.json")


def test_the_shipped_bands():
    files = [file.name for file in resources.files("overnight.bands").iterdir() if file.name.endswith(".json")]
    for name in files:
        preset = name.removesuffix(".json")
        band = find(preset)
        recipe = PRESETS[preset]().recipe
        assert band.preset == preset
        assert len(band.seeds) >= 5
        assert max(band.losses) == recipe.train.steps
        assert band.recipe["train"]["tokens_per_step"] == recipe.train.tokens_per_step
        assert band.recipe["optim"]["lr"] == recipe.optim.lr
        assert {"command", "device", "versions", "date"} <= set(band.made)
        assert same_text(band.dataset, {**band.dataset, "fingerprint": "another"})  # so it says which text it is of
        for step, losses in band.losses.items():
            assert all(band.limits[step].low < loss < band.limits[step].high for loss in losses)


def test_no_band_of_other_names():
    for name in ("gpt2-124m", "../bands/band", "", "my.toml", "runs/x"):
        assert find(name) is None
