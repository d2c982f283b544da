"""HellaSwag: the choices of an independent reference, on a GPT-2 that transformers trained a little."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpts import oracle
from hub_server import FakeHub, serving
from transformers import GPT2LMHeadModel

from overnight.data.arrow import numbers, strings
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals import hellaswag
from overnight.evals.base import Result
from overnight.evals.hellaswag import HellaSwag, harness_texts, open_hellaswag, read
from overnight.evals.scoring import Answer, Question, score
from overnight.exchange import sources
from overnight.model import GPT
from overnight.tokenizers import train

from .worlds import on_all

SENTENCE = "a man woman [title] [header] roof the lifts  smiles, Zürich ÉCOLE of skis. [step] and pulls it's 3 up"
WORDS = SENTENCE.split(" ")
BPE = train("bpe:310", [SENTENCE * 9])


def text(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most))).strip() or "it"


def row(number: int) -> dict[str, Any]:
    """A row in rowanz's schema, with all that the harness cleans."""
    draw = random.Random(number)
    ctx_a, ctx_b = text(draw, 3, 25), draw.choice(["", "the man", "She"])
    activity = number % 2 == 0
    return {
        "ind": number,
        "activity_label": text(draw, 1, 3),
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}".strip(),
        "split": "val",
        "split_type": draw.choice(["indomain", "zeroshot"]),
        "label": draw.randrange(4),
        "endings": ["[step]" if number == 7 else text(draw, 1, 9), *(text(draw, 1, 9) for _ in range(3))],
        "source_id": f"activitynet~v_{number}" if activity else f"wikihow~{number}",
    }


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


ROWS = [row(number) for number in range(60)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, GPT2LMHeadModel]:
    """Trained for some steps on texts like those of the rows: ours and transformers'."""
    theirs = oracle(n_embd=16, vocab_size=310, n_positions=48)
    draw, optimizer = random.Random(0), torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    ids = torch.tensor(BPE.encode(" ".join(text(draw, 9, 9) for _ in range(300))).astype(np.int64))[: 32 * 40]
    for batch in ids.view(-1, 4, 32).repeat(2, 1, 1):
        optimizer.zero_grad()
        theirs(batch, labels=batch).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    theirs.eval().save_pretrained(folder)
    return sources.read(str(folder)).build(), theirs


def likelihoods(model: Any, context: list[int], endings: list[list[int]]) -> np.ndarray:
    """Of each ending, alone, as lm-evaluation-harness cuts it."""
    found = []
    for ending in endings:
        ids = torch.tensor((context + ending)[-49:])
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
        wanted = ids[-len(ending) :]
        found.append(float(logits[-len(ending) :].gather(1, wanted[:, None]).sum()))
    return np.array(found)


def scored(gpt: GPT, evaluation: HellaSwag, **more: Any) -> Result:
    """By the scorer, in a world of one or the one given."""

    def scorer(questions: list[Question]) -> list[list[Answer]]:
        return score(gpt, questions, device=torch.device("cpu"), precision="fp32", **more)

    return evaluation(scorer, BPE, World())


@pytest.fixture(scope="module")
def result(models: tuple[GPT, GPT2LMHeadModel], tmp_path_factory: pytest.TempPathFactory) -> Result:
    path = written(tmp_path_factory.mktemp("rows") / "val.jsonl", ROWS)
    return scored(models[0], open_hellaswag(path, 0, print))


def test_the_choices_of_build_nanogpt(models, result):
    for given, found in zip(ROWS, result.rows, strict=True):
        context = BPE.encode(given["ctx"]).tolist()
        endings = [BPE.encode(" " + ending).tolist() for ending in given["endings"]]
        nats = -likelihoods(models[1], context, endings)
        assert np.abs(nats - found["nats"]).max() < 1e-4
        means = nats / [len(ending) for ending in endings]
        assert (found["choices"]["acc"], found["choices"]["acc_norm"]) == (nats.argmin(), means.argmin())
        assert found["acc_norm"] == float(means.argmin() == given["label"])


def test_the_choices_of_lm_evaluation_harness(models, result):
    """Its preparation of the rows, its encoding and its arithmetic, on transformers' logits."""
    api, utils = pytest.importorskip("lm_eval.api.model"), pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    stub = SimpleNamespace(backend="causal", tok_encode=lambda text, **_: BPE.encode(text).tolist())
    docs = utils.process_docs(SimpleNamespace(map=lambda process: [process(given) for given in ROWS]))
    assert any("[" in given["ctx"] for given in ROWS) and not any("[" in doc["query"] for doc in docs)
    for given, doc, found in zip(ROWS, docs, result.rows, strict=True):
        pairs = [api.TemplateLM._encode_pair(stub, doc["query"], f" {choice}") for choice in doc["choices"]]
        nats = likelihoods(models[1], pairs[0][0], [ending for _, ending in pairs])
        assert np.abs(nats + found["harness_nats"]).max() < 1e-4
        with np.errstate(divide="ignore"):  # an ending that is nothing after its preparation
            by_characters = nats / [len(choice) for choice in doc["choices"]]
            by_bytes = nats / [len(choice.encode()) for choice in doc["choices"]]
        expected = {"harness_acc": nats, "harness_acc_norm": by_characters, "harness_acc_bytes": by_bytes}
        for name, values in expected.items():
            assert found["choices"][name] == values.argmax(), name
            assert found[name] == float(values.argmax() == given["label"] == doc["gold"])


def test_the_two_ways_and_the_ways_to_norm_differ_here(result):
    names = ["acc_norm", "acc", "harness_acc_norm", "harness_acc"]
    choices = {name: [found["choices"][name] for found in result.rows] for name in names}
    assert len({tuple(chosen) for chosen in choices.values()}) == 4
    assert all(len(set(chosen)) == 4 for chosen in choices.values())  # no way always takes the same ending


def test_the_result_does_not_depend_on_the_processes_or_the_batch(models, result):
    examples = HellaSwag([hellaswag._example(given, "here") for given in ROWS])
    for size in (2, 3):
        for found in on_all(size, lambda world: scored(models[0], examples, world=world, tokens_at_once=500)):
            assert found.metrics == result.metrics
            for own, whole in zip(found.rows, result.rows, strict=True):
                assert own["nats"] == pytest.approx(whole["nats"], rel=1e-6)


def test_means_and_errors_and_parts(result):
    hits = np.array([found["acc_norm"] for found in result.rows])
    assert next(iter(result.metrics)) == "acc_norm"
    assert result.metrics["acc_norm"] == pytest.approx(hits.mean())
    assert result.metrics["acc_norm_stderr"] == pytest.approx(hits.std(ddof=1) / 60**0.5)
    wikihow = hits[1::2]
    assert result.metrics["acc_norm_wikihow"] == pytest.approx(wikihow.mean())
    assert result.metrics["acc_norm_wikihow_stderr"] == pytest.approx(wikihow.std(ddof=1) / 30**0.5)
    parts = {"activitynet", "wikihow", "indomain", "zeroshot"}
    assert {name.split("_")[-1] for name in result.metrics} == {"norm", "acc", "bytes", "stderr"} | parts
    assert all(f"{name}_stderr" in result.metrics for name in result.metrics if not name.endswith("_stderr"))
    assert "build-nanogpt" in result.protocol and "lm-evaluation-harness" in result.protocol


# ---- files


def test_what_is_not_the_validation_set_is_called_a_subset(tmp_path, monkeypatch):
    path = written(tmp_path / "val.jsonl", ROWS)
    assert "a subset: 60 rows, not the 10,042" in open_hellaswag(path, 0, print)._notes()[0]
    monkeypatch.setattr(hellaswag, "WHOLE", 60)
    assert open_hellaswag(path, 0, print)._notes() == []
    some = open_hellaswag(path, 7, print)
    assert [example.label for example in some.examples] == [ROWS[index * 60 // 7]["label"] for index in range(7)]
    assert "a subset: 7 rows" in some._notes()[0]
    other = written(tmp_path / "train.jsonl", [{**given, "split": "train"} for given in ROWS])
    assert "a subset" in open_hellaswag(other, 0, print)._notes()[0]
    own = [{key: value for key, value in given.items() if key not in ("split_type", "source_id")} for given in ROWS]
    only = written(tmp_path / "source.jsonl", [{**given, "source": "activitynet"} for given in own[:20]])
    assert "a subset: 20 rows, all of activitynet" in open_hellaswag(only, 0, print)._notes()[0]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As on the hub: the label is text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends = numbers(np.arange(0, 4 * len(rows) + 1, 4, dtype=np.int32))
    columns = {key: strings([str(one[key]) for one in rows]) for key in rows[0] if key not in ("endings", "ind")}
    columns["endings"] = pa.ListArray.from_arrays(ends, strings([ending for one in rows for ending in one["endings"]]))
    pq.write_table(pa.Table.from_arrays(list(columns.values()), names=list(columns)), path)
    return path


def test_the_hubs_copies_are_the_same_rows(tmp_path):
    assert read(parquet(tmp_path / "val.parquet", ROWS)) == read(written(tmp_path / "val.jsonl", ROWS))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": 4}, r"line 3.*the label is '4'"),
        ({"label": ""}, "line 3.*the test split has none"),
        ({"endings": ["a", "b", "c"]}, "line 3.*4 endings"),
        ({"endings": "abcd"}, "line 3.*4 endings"),
        ({"endings": ["a", "b", "c", None]}, "line 3.*must be text"),
        ({"ctx": ""}, "line 3"),
        ({"ctx_a": None}, "line 3.*must be text"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path, change, told):
    path = written(tmp_path / "val.jsonl", [ROWS[0], ROWS[1], ROWS[2] | change, ROWS[3]])
    with pytest.raises(UserError, match=told) as refusal:
        read(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 1.*no activity_label, ctx_a.*its fields: text"):
        read(written(tmp_path / "other.jsonl", [{"text": "a"}]))
    with pytest.raises(UserError, match="has no rows"):
        read(written(tmp_path / "none.jsonl", []))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "1.5")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hellaswag, "WHOLE", 60)
        yield server


def test_without_a_file_it_is_the_hubs_whole_validation_set(fake: FakeHub, tmp_path: Path) -> None:
    names = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    part = parquet(tmp_path / "part.parquet", ROWS[:30]).read_bytes()
    whole = parquet(tmp_path / "whole.parquet", ROWS).read_bytes()
    fake.commit("Rowan/hellaswag", dict.fromkeys(names, part))
    fake.commit("AlekseyKorshuk/hellaswag", dict.fromkeys(names, part) | {names[2]: whole})
    found = open_hellaswag(None, 0, print)
    assert found._notes() == [] and found.examples == read(written(tmp_path / "val.jsonl", ROWS))
    asked = len(fake.seen)
    assert open_hellaswag(None, 0, print).examples == found.examples
    assert len(fake.seen) == asked


def test_the_harness_texts_keep_what_is_in_order():
    example = hellaswag._example(row(2) | {"ctx_a": "A man ", "ctx_b": "HE [x] sits", "activity_label": "Sit"}, "here")
    assert harness_texts(example)[0] == "Sit: A man He sits"
