"""Runs beside each other: the verdict, what it is from, and what stands in its way."""

from __future__ import annotations

import copy
import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
from made_runs import CONFIG, attempt_line, eval_line, make_run, train_line

from overnight.bands.band import Band
from overnight.comparison import compare, text
from overnight.errors import UserError
from overnight.spread import two_sided

__all__ = ["make_run"]

TEXT = {"bytes": 1000, "head_bytes": 1000, "head_sha256": "a" * 64}
DATASET = {
    "path": "/nowhere", "fingerprint": "feed" * 16, "validation": TEXT,
    "tokenizer": {"name": "bytes", "vocab_size": 257, "sha256": None},
}  # fmt: skip


@pytest.fixture
def run(make_run):
    """Makes a finished run: name, final loss, seed; and whatever else is to be another."""

    def make(name: str, loss: float, seed: int = 1, dataset: Any = None, recipe: Any = None, **more: Any):
        config = copy.deepcopy(CONFIG)
        config["recipe"]["seed"] = seed
        for section, values in (recipe or {}).items():
            config["recipe"][section] |= values
        steps = more.pop("steps", 200)
        config["recipe"]["train"]["steps"] = steps
        evals = [eval_line(step, loss + 1 - step / steps) for step in range(0, steps + 1, 100)]
        evals = [{**line, **more.get("evaluation", {})} for line in evals]
        lines = [*more.get("tasks", []), *evals, *(train_line(step, 2.0) for step in range(100, steps + 1, 100))]
        lines = sorted(lines, key=lambda line: line["step"])[: more.get("lines")]
        return make_run(name, config, metrics=lines, attempts=[attempt_line(1, 0, dataset=dataset or DATASET)])

    return make


@pytest.fixture
def side(run):
    """Several runs of one recipe with other seeds."""

    def make(name: str, losses: Any, **more: Any):
        return [run(f"{name}{i}", loss, seed=i, **more) for i, loss in enumerate(losses)]

    return make


def only(found, metric="val_loss"):
    return next(one for one in found.differences if one.metric == metric)


# ---- verdicts


def test_better_worse_and_not_shown(side):
    good, bad, near = side("good", [2.0, 2.01, 1.99]), side("bad", [2.1, 2.11, 2.09]), side("near", [2.01, 2.0, 1.995])
    found = only(compare(good, bad))
    assert (found.verdict, found.difference) == ("better", pytest.approx(-0.1))
    assert only(compare(bad, good)).verdict == "worse"
    assert only(compare(good, near)).verdict == "not shown"
    said = "\n".join(text.lines(compare(bad, good)))
    assert "worse: A is worse than B, by 0.1000" in said
    assert "95% interval" in said
    assert "Welch's t, 3 and 3 runs" in said


def test_pairs_of_one_recipe_are_not_shown_and_a_worse_recipe_is_found(side):
    random = np.random.default_rng(0)
    wrong = found = 0
    for i in range(12):
        same = [side(f"s{i}{part}", random.normal(2.0, 0.008, 4)) for part in "ab"]
        wrong += only(compare(*same)).verdict != "not shown"
        worse = side(f"w{i}", random.normal(2.02, 0.008, 4))
        found += only(compare(worse, same[0])).verdict == "worse"
    assert wrong <= 3  # 0.6 of 12 expected
    assert found >= 6  # 10 expected


def test_one_run_against_several_takes_the_spread_of_those(side, run):
    several, alone = [2.0, 2.02, 1.98, 2.0], 2.05
    found = only(compare(side("a", several), [run("b", alone)]))
    half = two_sided(0.95, 3) * statistics.stdev(several) * math.sqrt(1 + 1 / 4)
    assert found.interval.half == pytest.approx(half)
    assert "from the spread of the 4 runs of A" in found.noise


def test_one_run_a_side_without_a_known_noise_gives_the_difference_alone(run):
    found = compare([run("a", 2.0)], [run("b", 2.1, seed=2)])
    assert (only(found).verdict, only(found).interval, only(found).needed) == ("unknown", None, None)
    assert "the noise is unknown" in "\n".join(text.lines(found))
    assert json.loads(json.dumps(text.to_json(found)))["results"][0]["interval"] is None


def test_one_run_a_side_with_a_band(run):
    losses = (2.0, 2.01, 1.99, 2.005, 1.995)
    band = Band("tiny", {}, DATASET, "fp32", {}, (1, 2, 3, 4, 5), 99, 99, {200: losses})
    found = only(compare([run("a", 2.0)], [run("b", 2.06, seed=2)], band=band))
    # 1.063623 is the tenth percentile of chi squared with 4 degrees of freedom, in any table
    half = 1.959964 * math.sqrt(2) * statistics.stdev(losses) * math.sqrt(4 / 1.063623)
    assert found.interval.half == pytest.approx(half, rel=1e-5)
    assert found.verdict == "better"
    assert found.noise == "from the spread of 5 seeds of tiny"
    of_another_text = Band("tiny", {}, {"fingerprint": "0"}, "fp32", {}, (1, 2, 3, 4, 5), 99, 99, {200: losses})
    assert only(compare([run("c", 2.0)], [run("d", 2.04, seed=2)], band=of_another_text)).verdict == "unknown"


def test_the_known_noise_of_gpt2_124m(run):
    shape = {"model": {"n_layer": 12, "n_head": 12, "n_embd": 768}}
    found = only(compare([run("a", 3.290, recipe=shape)], [run("b", 3.293, seed=2, recipe=shape)]))
    assert found.verdict == "not shown"
    assert found.interval.half == pytest.approx(1.95996 * 0.002 * math.sqrt(2), rel=1e-4)
    assert only(compare([run("c", 3.29, recipe=shape)], [run("d", 3.30, seed=2, recipe=shape)])).verdict == "better"


def test_how_many_more_seeds_would_tell(side):
    found = compare(side("a", [2.0, 2.01, 1.99]), side("b", [2.004, 2.014, 1.994]), by=0.02)
    assert only(found).needed == 6  # a textbook's number for a difference of two standard deviations
    assert only(found).by == 0.02
    said = "\n".join(text.lines(found))
    assert "6 runs a side would show a difference of 0.0200 in 80% of cases: 3 more a side" in said
    same = compare(side("c", [2.0, 2.01, 1.99]), side("d", [2.0, 2.01, 1.99]))
    assert only(same).needed is None
    assert "more than 1000 runs" in "\n".join(text.lines(same))


def test_pairs(side, run):
    common = np.random.default_rng(0).normal(0, 0.1, 5)
    a, b = side("a", 2.0 + common), side("b", 2.02 + common + np.array([1, -1, 0, 1, -1]) * 1e-3)
    assert only(compare(a, b)).verdict == "not shown"
    found = only(compare(a, b[::-1], pairs=True))
    assert (found.verdict, found.noise) == ("better", "paired t, 5 seeds")
    for other in ([run("c", 2.0, seed=9)], side("d", [2.0, 2.1])):
        with pytest.raises(UserError, match="same seeds on both sides"):
            compare(a, other, pairs=True)


def test_results_of_tasks(run):
    def task(acc: float, examples: int = 100) -> list[dict[str, Any]]:
        return [{"kind": "task", "step": 200, "task": "hellaswag", "protocol": "completion", "examples": examples,
                 "metrics": {"acc": acc, "acc_stderr": 0.01}, "time": {}}]  # fmt: skip

    a = [run(f"a{i}", 2.0, seed=i, tasks=task(0.30 + i / 1000)) for i in range(3)]
    b = [run(f"b{i}", 2.0, seed=i, tasks=task(0.25 + i / 1000)) for i in range(3)]
    found = compare(a, b)
    assert [one.metric for one in found.differences] == ["val_loss", "hellaswag.acc"]
    assert only(found, "hellaswag.acc").verdict == "better"  # more is better here
    subset = [run("c", 2.0, tasks=task(0.3, examples=10))]
    found = compare(a, subset)
    assert [one.metric for one in found.differences] == ["val_loss"]
    assert any("hellaswag" in remark for remark in found.remarks)


def test_two_protocols_of_a_task_are_two_results(run):
    def task(acc: float) -> list[dict[str, Any]]:
        told = "as in build-nanogpt; on lm-evaluation-harness's text, harness_acc"
        part = {"kind": "task", "step": 200, "task": "hellaswag", "protocol": told, "examples": 10, "time": {}}
        return [{**part, "metrics": {"acc": 0.9, "harness_acc": 0.9}},
                {**part, "examples": 100, "metrics": {"acc": acc, "harness_acc": acc + 0.1}}]  # fmt: skip

    found = compare([run("a", 2.0, tasks=task(0.3))], [run("b", 2.0, tasks=task(0.2))])
    assert {one.metric: one.a for one in found.differences if "acc" in one.metric} == {
        "hellaswag.acc": (0.3,),
        "hellaswag.harness_acc": (0.4,),
    }


# ---- which evaluation


def test_at(run):
    short, long = run("a", 2.0), run("b", 2.0, seed=2, steps=400)
    found = compare([short], [long])
    assert [entry.step for entry in (*found.a, *found.b)] == [200, 400]
    assert any("200 and 400 steps; --at common" in remark for remark in found.remarks)
    for at in ("common", "200", "tokens"):
        found = compare([short], [long], at=at)
        assert [entry.step for entry in (*found.a, *found.b)] == [200, 200]
        assert not any("--at" in remark for remark in found.remarks)
    large = run("c", 2.0, seed=3, recipe={"train": {"tokens_per_step": 1024}})
    found = compare([long], [large], at="tokens")
    assert [(entry.step, entry.tokens) for entry in (*found.a, *found.b)] == [(400, 204_800), (200, 204_800)]
    assert any("--at tokens" in remark for remark in compare([short], [large]).remarks)
    for at, why in (("150", "was not evaluated at step 150"), ("x", "--at is last, common")):
        with pytest.raises(UserError, match=why):
            compare([short], [long], at=at)


# ---- what is not comparable


def test_other_validation_text_is_refused(run):
    a = run("a", 2.0)
    other = {**DATASET, "fingerprint": "0" * 64, "validation": {**TEXT, "head_sha256": "b" * 64}}
    for number, (dataset, why) in enumerate((
        (other, "other validation text"), ({"path": "x", "fingerprint": "0" * 64}, "does not say which text"),
        ({"path": "x", "fingerprint": "0" * 64, "corpora": []}, "other validation text"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=why):
            compare([a], [run(f"b{number}", 2.0, seed=2, dataset=dataset)])


def test_other_tokenizers_are_compared_in_bits_per_byte(side):
    dataset = {**DATASET, "fingerprint": "0" * 64, "tokenizer": {"name": "gpt2", "vocab_size": 50257, "sha256": None}}
    a = side("a", [2.0, 2.01, 1.99])
    b = side("b", [2.2, 2.21, 2.19], dataset=dataset, evaluation={"val_bits_per_byte": 0.9})
    found = compare(a, b)
    assert [one.metric for one in found.differences] == ["val_bits_per_byte"]
    assert found.differences[0].verdict == "worse"  # 1.0 against 0.9
    assert any("bits per byte are compared" in remark for remark in found.remarks)


def test_what_makes_a_difference_by_itself_is_said(run):
    a = run("a", 2.0)
    found = compare([a], [run("b", 2.0, seed=2, evaluation={"val_tokens": 50})])
    assert any("on 50 and 99 tokens" in remark for remark in found.remarks)
    found = compare([a], [run("c", 2.0, seed=2, steps=400, lines=-3)])
    assert any("c is not finished" in remark for remark in found.remarks)
    found = compare([a, run("d", 2.0, seed=2, recipe={"optim": {"lr": 1.0}})], [run("e", 2.0)])
    assert any("the runs of A differ in more than the seed: optim.lr" in remark for remark in found.remarks)
    assert ("optim.lr", 0.001, 1.0) in compare([a], [run("f", 2.0, recipe={"optim": {"lr": 1.0}})]).changed


def test_mistakes_are_one_line(run, overnight, tmp_path):
    a, b = run("a", 2.0), run("b", 2.0)
    empty = run("empty", 2.0, seed=4)
    (empty / "metrics.jsonl").write_text("")
    broken = run("broken", 2.0, seed=5, evaluation={"val_loss": None})
    for arguments, why in (
        ([a, b], "the word vs"), ([a, "vs", b, "vs", b], "the word vs"), (["vs", a], "a run or more on either side"),
        ([a, "vs", a], "on both sides"), ([a, b, "vs", run("c", 2.0, seed=3)], "the same seed"),
        ([a, "vs", tmp_path / "no"], "does not exist"), ([a, "vs", empty], "no validation loss yet"),
        ([a, "vs", broken], "is not a number"), ([a, "vs", b, "--level", "2"], "level of confidence"),
        ([a, "vs", b, "--band", tmp_path / "no"], "not a band"),
    ):  # fmt: skip
        done = overnight("compare", *arguments, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_command(side, overnight):
    a, b = side("a", [2.0, 2.01, 1.99]), side("b", [2.1, 2.11, 2.09])
    done = overnight("compare", *a, "vs", *b)
    assert "better: A is better than B, by 0.1000" in done.stdout
    found = json.loads(overnight("compare", *a, "vs", *b, "--json", "--by", "0.01").stdout)
    assert [entry["side"] for entry in found["runs"]] == list("AAABBB")
    assert found["results"][0]["verdict"] == "better"
    low, high = found["results"][0]["interval"]
    assert low < found["results"][0]["difference"] < high < 0
