"""The zero-shot tasks and the bridge, against lm-evaluation-harness with transformers, example by example."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import serving

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.scoring import score
from overnight.evals.tasks import TASKS
from overnight.evals.zero_shot import open_task
from overnight.exchange import sources, tokenizer_files
from overnight.tokenizers.gpt2 import GPT2Tokenizer

pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

WINDOW = 64
LONG = "The river that runs past the old mill was low that summer, and the boys walked across it on the stones. " * 5
ROWS: dict[str, list[dict[str, Any]]] = {
    "lambada": [
        {"text": "he looked at the door , and then he closed the door"},
        {"text": "“ No , ” said Zoë , and it was the end of the story"},
        {"text": LONG + "he fell into the river"},
    ],
    "piqa": [
        {"goal": "How to boil eggs.", "sol1": "Put them in hot water.", "sol2": "Put them under a hat.", "label": 0},
        {"goal": "To dry a wet café floor,", "sol1": "use the naïve mop", "sol2": "use a very dry mop.", "label": 1},
        {"goal": LONG, "sol1": "cross it", "sol2": "wait for winter to come", "label": 1},
    ],
    "arc_easy": [
        {"question": "Which is a metal?", "choices": {"text": ["iron", "wood", "air"], "label": ["A", "B", "C"]},
         "answerKey": "A"},
        {"question": "What falls?", "choices": {"text": ["rain", "a thought", "42", "snow on Sunday", "up"],
         "label": ["1", "2", "3", "4", "5"]}, "answerKey": "4"},
    ],
    "winogrande": [
        {"sentence": "Ann thanked Sue because _ had helped.", "option1": "Ann", "option2": "Sue", "answer": "2"},
        {"sentence": "The _ did not fit in the case, as it was big.", "option1": "trophy", "option2": "case of wine",
         "answer": "1"},
    ],
    "openbookqa": [
        {"question_stem": "The sun is", "choices": {"text": ["a star", "a lamp", "cold", "a moon"],
         "label": ["A", "B", "C", "D"]}, "answerKey": " A"},
        {"question_stem": "Ice that is heated", "choices": {"text": ["grows", "melts"], "label": ["A", "B"]},
         "answerKey": "B"},
    ],
    "boolq": [
        {"passage": "Cats are animals. They sleep.", "question": "do cats sleep", "label": 1},
        {"passage": LONG, "question": "was the river high", "label": 0},
    ],
    "copa": [
        {"premise": "The man was late.", "question": "cause", "choice1": "He overslept.", "choice2": "It was noon.",
         "label": 0},
        {"premise": "The glass fell. ", "question": "effect", "choice1": "It sang.", "choice2": "It broke.",
         "label": 1},
    ],
}  # fmt: skip
ROWS["arc_challenge"] = ROWS["arc_easy"][::-1]
FILES = {
    "lambada": "lambada/lambada_openai", "piqa": "piqa/piqa", "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge", "winogrande": "winogrande/default", "openbookqa": "openbookqa/openbookqa",
    "boolq": "super_glue/boolq/default", "copa": "super_glue/copa/default",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with large weights, whose choices are no toss-ups, and GPT-2's tokenizer."""
    found = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=WINDOW, initializer_range=0.3)
    transformers.GPT2LMHeadModel(config).save_pretrained(found)
    tokenizer_files.write(GPT2Tokenizer(), found, WINDOW)
    return found


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def bridge(folder: Path) -> Any:
    from overnight.evals.bridge import OvernightLM

    return OvernightLM(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    """Our scorer on the same weights, and our tokenizer."""
    weights = sources.read(str(folder))
    return partial(score, weights.build(), device=torch.device("cpu"), precision="fp32"), weights.tokenizer


def rows_file(name: str, path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    return path


def harness_task(name: str, file: Path) -> Any:
    """The harness's own task, on our rows."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / f"{FILES[name]}.yaml", resolve_func=True)
    task = TASKS[name]
    assert (config["dataset_path"], config["dataset_name"]) == (task.repo, task.config)
    splits = [config[key] for key in ("test_split", "validation_split", "training_split") if config.get(key)]
    assert splits[0] == task.split  # of those it has, the harness takes the first
    local = {"data_files": dict.fromkeys(splits, str(file)), "cache_dir": str(file.parent / "cache")}
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": local}
    return ConfigurableTask(config={key: value for key, value in config.items() if key != "tag"})


@pytest.fixture(scope="module")
def by_harness(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All tasks at once, with transformers' model."""
    from lm_eval import evaluator

    home = tmp_path_factory.mktemp("rows")
    tasks = {name: harness_task(name, rows_file(name, home / f"{name}.jsonl")) for name in TASKS}
    for task in tasks.values():
        task.set_config("num_fewshot", 0)
    return home, evaluator.evaluate(hf, {"tasks": tasks}, bootstrap_iters=200)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_is_the_harness_own(name: str, ours: Any, by_harness: Any) -> None:
    home, found = by_harness
    result = open_task(name, home / f"{name}.jsonl", 0, print)(*ours, World())
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(result.rows) == result.examples == len(ROWS[name])
    for row, sample in zip(result.rows, samples, strict=True):
        expected = [-nats for nats, _ in sample["filtered_resps"]]
        assert row["nats"] == pytest.approx(expected, abs=1e-4)
        for key in ("acc", "acc_norm"):
            assert row.get(key) == sample.get(key)
    theirs = {key.removesuffix(",none"): value for key, value in found["results"][name].items() if "," in key}
    assert set(result.metrics) == set(theirs)
    for key, value in theirs.items():
        tolerance = 0.3 if key == "perplexity_stderr" else 1e-4  # the harness draws it
        assert result.metrics[key] == pytest.approx(value, rel=tolerance), key
    assert "zero-shot" in result.protocol
    assert "subset" in result.notes[0] and f"{TASKS[name].rows:,}" in result.notes[0]


# ---- files


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The items that a file with these rows gives."""
    home = tmp_path_factory.mktemp("items")

    def read(name: str, rows: list[dict[str, Any]], examples: int = 0) -> Any:
        path = home / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return open_task(name, path, examples, print).items

    return read


def test_the_original_releases_are_read_as_the_hub_s_copies(items: Any, tmp_path: Path) -> None:
    def released(row: dict[str, Any], key: str) -> dict[str, Any]:
        choices = [{"text": text, "label": label} for text, label in zip(*row["choices"].values(), strict=True)]
        return {"question": {"stem": row[key], "choices": choices}, "answerKey": row["answerKey"]}

    for name, key in (("arc_easy", "question"), ("openbookqa", "question_stem")):
        assert items(name, ROWS[name]) == items(name, [released(row, key) for row in ROWS[name]])
    google = [{"passage": r["passage"], "question": r["question"], "answer": bool(r["label"])} for r in ROWS["boolq"]]
    assert items("boolq", ROWS["boolq"]) == items("boolq", google)
    apart = [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in ROWS["piqa"]]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in apart))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n1\n")
    assert open_task("piqa", tmp_path / "valid.jsonl", 0, print).items == items("piqa", ROWS["piqa"])
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(UserError, match=r"2 labels, .* 3 rows"):
        open_task("piqa", tmp_path / "valid.jsonl", 0, print)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_row_of_another_task_is_refused_by_number(name: str, items: Any) -> None:
    for wrong in ({"other": 1}, {}, {**ROWS[name][0], TASKS[name].fields.split(", ")[0]: None}):
        with pytest.raises(UserError, match=rf"line 2: no row of {name}, which has "):
            items(name, [ROWS[name][0], wrong])


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("piqa", {"label": -1}),
        ("copa", {"question": "why"}),
        ("winogrande", {"answer": ""}),
        ("winogrande", {"sentence": "no blank"}),
        ("arc_easy", {"answerKey": "Z"}),
        ("boolq", {"label": 2}),
    ],
)
def test_a_row_without_an_answer_is_refused(name: str, changed: dict[str, Any], items: Any) -> None:
    with pytest.raises(UserError, match=f"line 1: no row of {name}"):
        items(name, [ROWS[name][0] | changed])


def test_only_the_whole_split_has_no_note(items: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from overnight.evals.zero_shot import ZeroShot

    monkeypatch.setitem(TASKS, "piqa", dataclasses.replace(TASKS["piqa"], rows=3))
    found = items("piqa", ROWS["piqa"])
    assert ZeroShot(TASKS["piqa"], found)(*ours, World()).notes == []
    assert "a subset: 2 rows" in ZeroShot(TASKS["piqa"], items("piqa", ROWS["piqa"], 2))(*ours, World()).notes[0]
    assert "not comparable" in ZeroShot(TASKS["piqa"], [*found, *found])(*ours, World()).notes[0]
    with pytest.raises(UserError, match="has no rows"):
        items("piqa", [])


@pytest.mark.parametrize("converted", [False, True])
def test_rows_come_from_the_hub_and_only_the_whole_split_is_kept(
    converted: bool, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS["arc_easy"]), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "1.5")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        if converted:
            server.commit(TASKS["arc_easy"].repo, {"arc.py": b"raise SystemExit"})
            files = {"ARC-Easy/test/0000.parquet": content, "ARC-Challenge/test/0000.parquet": b"other"}
            server.commit(TASKS["arc_easy"].repo, files, branch="refs/convert/parquet")
        else:
            card = b"---\nconfigs:\n- config_name: ARC-Easy\n  data_files: [{split: test, path: easy/test-*}]\n---\n"
            server.commit(TASKS["arc_easy"].repo, {"README.md": card, "easy/test-00000-of-00001.parquet": content})
        with pytest.raises(UserError, match=r"has 2 rows in its split 'test', not 2,376"):
            open_task("arc_easy", None, 0, print)
        monkeypatch.setitem(TASKS, "arc_easy", dataclasses.replace(TASKS["arc_easy"], rows=2))
        found = open_task("arc_easy", None, 0, print).items
    assert found == open_task("arc_easy", None, 0, print).items == items("arc_easy", ROWS["arc_easy"])


# ---- the bridge

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
{more}
"""
CONTEXTS = ["", "The mill", LONG, "A trailing space ", "naïve — “quotes”", "<|endoftext|>The end"]
LOCAL = {
    "local_choice": (
        "multiple_choice",
        [{"context": text, "choices": ["is old", "stands by the river", "é"], "label": i % 3}
         for i, text in enumerate(CONTEXTS)],
        "doc_to_choice: choices\ndoc_to_target: label\n"
        "metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]",
    ),
    "local_rolling": (
        "loglikelihood_rolling",
        [{"context": "", "text": text} for text in ("short", LONG, LONG * 3, "x" * 200)],
        "doc_to_target: text\nmetric_list: [{metric: bits_per_byte, aggregation: bits_per_byte}]",
    ),
    "local_writing": (
        "generate_until",
        [{"context": text, "text": "?"} for text in CONTEXTS[1:]],
        "doc_to_target: text\ngeneration_kwargs: {max_gen_toks: 12, until: ['e', 'zz'], do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean}]",
    ),
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, local: list[str]) -> None:
    """The harness without what takes it seconds: a list of all its tasks, and of all that is installed here."""
    import lm_eval.evaluator
    import lm_eval.tasks

    home = Path(local[0]).parent
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    listed = partial(lm_eval.tasks.TaskManager, include_path=home)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **settings: listed(include_defaults=False))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three tasks of our own as the harness reads them."""
    home, found = tmp_path_factory.mktemp("local"), []
    for name, (kind, rows, more) in LOCAL.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = {"name": name, "file": home / f"{name}.jsonl", "cache": home / "cache", "kind": kind, "more": more}
        (home / f"{name}.yaml").write_text(YAML.format(**names))
        found.append(str(home / f"{name}.yaml"))
    return found


@pytest.mark.usefixtures("quick")
def test_the_bridge_gives_what_transformers_gives(local: list[str], hf: Any, folder: Path) -> None:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from overnight.evals.harness import run_harness

    loaded = TaskManager(include_defaults=False).load(local)
    expected = evaluator.evaluate(hf, loaded, bootstrap_iters=10)["samples"]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    results = {result.name: result for result in run_harness(str(folder), local, device="cpu")}
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert results.keys() == expected.keys() == LOCAL.keys()
    for name, result in results.items():
        assert result.examples == len(result.rows) == len(LOCAL[name][1])
        assert "lm-evaluation-harness" in result.protocol and not result.notes
        for row, sample in zip(result.rows, expected[name], strict=True):
            assert row["row"] == sample["doc_id"] + 1
            theirs = pytest.approx(flat(sample["filtered_resps"]), abs=1e-4, rel=1e-6)  # they add up in float32
            assert flat(row["filtered_resps"]) == theirs, name
    assert all(row["filtered_resps"][0] for row in results["local_writing"].rows)
    assert set(results["local_choice"].metrics) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}


def flat(values: Any) -> list[Any]:
    """Numbers and words in nested lists; words as they are compare equal only to themselves."""
    if isinstance(values, (list, tuple)):
        return [inner for value in values for inner in flat(value)]
    return [values] if isinstance(values, (int, float)) else [ord(character) for character in values]


@pytest.mark.usefixtures("quick")
def test_a_limit_is_called_a_subset(local: list[str], bridge: Any) -> None:
    from overnight.evals.harness import evaluate

    (result,) = evaluate(bridge, local[:1], limit=2)
    assert result.examples == 2
    assert "a subset: 2 of 6 examples" in result.notes[0]


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_run_is_one_line(local: list[str], bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance

    from overnight.evals import harness

    with pytest.raises(UserError, match=r"lm-eval has no task 'local_choise' \(did you mean local_choice"):
        harness.evaluate(bridge, ["local_choise"])
    asked = Instance("generate_until", {}, ("The", {"max_gen_toks": WINDOW}), 0)
    with pytest.raises(UserError, match=f"up to {WINDOW} tokens, and the model sees {WINDOW}"):
        bridge.generate_until([asked])
    with pytest.raises(UserError, match="without a token of its own"):
        bridge.loglikelihood([Instance("loglikelihood", {}, ("The mill", ""), 0)])
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'overnight\[lm-eval\]'"):
        harness.run_harness("nowhere", ["piqa"])


@pytest.mark.usefixtures("quick")
def test_the_harness_own_command(local: list[str], folder: Path, overnight: Any, tmp_path: Path) -> None:
    done = overnight(
        *("lm_eval", "--model", "overnight", "--model_args", f"path={folder}", "--tasks", "local_choice"),
        *("--output_path", tmp_path, "--log_samples"),
    )
    assert "local_choice" in done.stdout and "acc_norm" in done.stdout
    assert list(tmp_path.rglob("samples_local_choice_*.jsonl"))
    done = overnight(
        *("lm_eval", "--model", "overnight", "--model_args", f"path={folder}", "--tasks", "nothing"), check=False
    )
    assert done.returncode == 2 and done.stderr.endswith("overnight: lm_eval: Tasks not found: nothing\n")
