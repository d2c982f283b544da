"""Published numbers: which of them fit a result."""

from __future__ import annotations

import pytest

from overnight.evals.baselines import BASELINES, COMPLETION, HARNESS, VAL_LOSS, Baseline, for_corpus, for_task


def named(found: list[Baseline]) -> dict[str, float]:
    return {one.name: one.value for one in found}


def test_each_number_stands_once_and_says_where_it_is_from() -> None:
    keys = [(one.name, one.task, one.metric, one.protocol, one.corpus) for one in BASELINES]
    assert len(set(keys)) == len(keys)
    for one in BASELINES:
        assert one.source and (one.corpus is not None) == (one.task == VAL_LOSS)
        assert one.protocol or one.name in ("chance", "humans")


@pytest.mark.parametrize("family", ["GPT-2", "GPT-3"])
def test_larger_models_are_better(family: str) -> None:
    """A number that stands on the wrong line is out of order."""
    every = [*for_task("hellaswag", "acc_norm", COMPLETION), *for_corpus("openwebtext")]
    for task, better in (("hellaswag", 1), (VAL_LOSS, -1)):
        sizes = [
            (int(one.name.split()[1].removesuffix("M")), better * one.value)
            for one in every
            if one.task == task and one.name.startswith(family)
        ]
        assert sorted(sizes) == sorted(sizes, key=lambda pair: pair[1])
        assert len(sizes) == 4 or (family, task) == ("GPT-3", VAL_LOSS)


def test_a_protocol_gets_its_own_numbers() -> None:
    completion, harness = (named(for_task("hellaswag", "acc_norm", words)) for words in (COMPLETION, HARNESS))
    assert (completion["GPT-2 124M"], harness["GPT-2 124M"]) == (0.2955, 0.3114)
    assert "GPT-3 124M" in completion and "GPT-3 124M" not in harness
    assert named(for_task("hellaswag", "acc", COMPLETION))["GPT-2 124M"] == 0.2859
    assert set(named(for_task("hellaswag", "acc_norm", "some other way"))) == {"chance", "humans"}
    assert for_task("piqa", "acc", HARNESS) == []


def test_a_corpus_gets_its_own_losses() -> None:
    assert named(for_corpus("fineweb-edu")) == {"GPT-2 124M": 3.2924}
    assert named(for_corpus("openwebtext"))["GPT-2 1558M"] == 2.54
    assert for_corpus("files") == []
