"""Results of evaluations: read, drawn, and set beside published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import MakeRun, eval_line, task_line, train_line

from overnight.evals.baselines import COMPLETION, HARNESS
from overnight.report.charts import Chart, axis, charts
from overnight.report.facts import facts
from overnight.report.published import losses, verdict
from overnight.report.run_data import RunData, read_run
from overnight.report.tasks import best, kinds, results, with_error


def run_with(make_run: MakeRun, *lines: dict[str, Any], name: str = "run") -> RunData:
    trained = [train_line(step, 3.0) for step in (10, 20, 30)]
    return read_run(make_run(name, metrics=[*trained, *lines]))


def chart_of(runs: list[RunData], title: str) -> Chart:
    return next(chart for chart in charts(runs) if chart.title == title)


def test_results_are_read_as_they_were_written(make_run: MakeRun) -> None:
    run = run_with(make_run, task_line(20, 0.26, notes=["a note", 3]), task_line(10, 0.25), task_line(10, 0.255))
    assert [(one.step, one.metrics["acc_norm"]) for one in run.tasks] == [(10, 0.255), (20, 0.26)]
    assert run.tasks[1].notes == ("a note",) and run.tasks[1].examples == 10_042
    assert "eval.acc_norm" not in run.series and "task.acc_norm" not in run.series


def test_damaged_results_are_left_out(make_run: MakeRun) -> None:
    broken = [{"task": None}, {"metrics": []}, {"metrics": {"acc": "x"}, "examples": "many", "protocol": 5}]
    run = run_with(make_run, *(task_line(10 + i, 0.3, **more) for i, more in enumerate(broken)))
    assert run.tasks == []
    assert [chart.title for chart in charts([run]) if "HellaSwag" in chart.title] == []


def test_the_chart_of_a_task(make_run: MakeRun) -> None:
    run = run_with(make_run, task_line(10, 0.25), task_line(20, 0.31), task_line(30, 0.30))
    chart = chart_of([run], "HellaSwag")
    (line,) = chart.lines
    assert line.series.value.tolist() == [0.25, 0.31, 0.30] and line.best == (20, 0.31)
    assert line.error is not None and line.error.tolist() == [0.0046] * 3
    # passed: GPT-2 124M; the next of each family, and no humans, who would flatten the curve
    assert dict(chart.levels) == {"chance": 0.25, "GPT-2 124M": 0.2955, "GPT-2 350M": 0.375224, "GPT-3 124M": 0.337}
    assert axis([run]) == "tokens"


def test_scorings_stay_apart_and_wordings_of_one_do_not(make_run: MakeRun) -> None:
    harness = "lm-evaluation-harness's, zero-shot"
    first = run_with(make_run, task_line(10, 0.25), task_line(10, 0.31, protocol=harness))
    other = run_with(make_run, task_line(10, 0.26, protocol="Completion style"), name="other")
    assert [kind.protocol for kind in kinds([first, other])] == ["completion style", "lm-evaluation-harness"]
    found = [chart for chart in charts([first, other]) if chart.title == "HellaSwag"]
    assert [len(chart.lines) for chart in found] == [2, 1]
    assert [chart.id for chart in found] == ["hellaswag", "hellaswag-2"]
    assert dict(found[1].levels)["GPT-2 124M"] == 0.3114


@pytest.mark.parametrize(
    ("value", "more", "words"),
    [
        (0.32, {}, "above GPT-2 124M's 0.2955"),
        (0.26, {}, "below GPT-2 124M's 0.2955"),
        (0.30, {}, "within two standard errors of GPT-2 124M's 0.2955"),
        (0.32, {"protocol": "lm-evaluation-harness's"}, "within two standard errors of GPT-2 124M's 0.3114"),
        (0.32, {"examples": 3243}, "not comparable: 3,243 of 10,042 examples"),
        (0.32, {"notes": ["10,042 rows, not comparable"]}, "10,042 rows, not comparable"),
        (0.32, {"protocol": "my own"}, "not comparable with GPT-2 124M: no published number for this protocol"),
        (0.32, {"task": "piqa"}, ""),
    ],
)
def test_beside_gpt2(make_run: MakeRun, value: float, more: dict[str, Any], words: str) -> None:
    (result,) = run_with(make_run, task_line(10, value, **more)).tasks
    assert verdict(result) == words


def test_one_line_may_hold_two_protocols(make_run: MakeRun) -> None:
    """As HellaSwag is written."""
    metrics = {"acc_norm": 0.31, "acc_norm_stderr": 0.0046, "acc": 0.30, "acc_norm_wikihow": 0.29,
               "harness_acc_norm": 0.33, "harness_acc_norm_stderr": 0.0047, "harness_acc": 0.31}  # fmt: skip
    told = "as in build-nanogpt, acc by summed loss; on lm-evaluation-harness's text, harness_acc by summed loss"
    run = run_with(make_run, task_line(10, 0, metrics=metrics, protocol=told))
    first, second = run.tasks
    assert (first.protocol, second.protocol) == (COMPLETION, HARNESS) and first.told == second.told == told
    assert first.metrics == {"acc_norm": 0.31, "acc_norm_stderr": 0.0046, "acc": 0.30, "acc_norm_wikihow": 0.29}
    assert second.metrics == {"acc_norm": 0.33, "acc_norm_stderr": 0.0047, "acc": 0.31}
    assert [verdict(one) for one in run.tasks] == ["above GPT-2 124M's 0.2955", "above GPT-2 124M's 0.3114"]


def test_a_subset_gets_no_lines(make_run: MakeRun) -> None:
    run = run_with(make_run, task_line(10, 0.3, examples=200))
    assert chart_of([run], "HellaSwag").levels == []


def test_the_first_metric_counts_where_there_is_no_norm(make_run: MakeRun) -> None:
    metrics = [{"acc": value, "acc_stderr": 0.01, "perplexity": 40.5} for value in (0.5, None, 0.4)]
    lines = [task_line(10 + i, 0, "lambada", metrics=numbers) for i, numbers in enumerate(metrics)]
    run = run_with(make_run, *lines)
    (kind,) = kinds([run])
    highest = best(run, kind)
    assert highest is not None and highest.step == 10
    assert with_error(results(run, kind)[0], "acc") == "0.5000 ± 0.0100"
    assert with_error(results(run, kind)[0], "perplexity") == "40.5000"


def test_less_perplexity_is_better(make_run: MakeRun) -> None:
    lines = [task_line(10 + i, 0, "wikitext", metrics={"word_perplexity": value}) for i, value in enumerate((50, 40))]
    run = run_with(make_run, *lines, task_line(20, 0, "mine", metrics={"turns": 3.0}))
    found = [best(run, kind) for kind in kinds([run])]
    assert found[0] is not None and found[0].metrics == {"word_perplexity": 40} and found[1] is None
    assert [chart_of([run], title).lines[0].best for title in ("wikitext", "mine")] == [(11, 40), None]


def test_a_part_and_the_whole_are_two_curves(make_run: MakeRun) -> None:
    folder = make_run(metrics=[train_line(30, 3.0), task_line(10, 0.2, examples=100), task_line(30, 0.6, examples=100)])
    (folder / "evals" / "step_00000030").mkdir(parents=True)
    later = {"tasks": [{**task_line(30, 0.3), "name": "hellaswag"}]}
    (folder / "evals" / "step_00000030" / "results.json").write_text(json.dumps(later))
    part, whole = (chart for chart in charts([read_run(folder)]) if chart.title == "HellaSwag")
    assert part.lines[0].series.value.tolist() == [0.2, 0.6] and part.levels == [] and "100 examples" in part.about
    assert whole.lines[0].series.value.tolist() == [0.3] and whole.levels


def test_gap_and_error_of_the_loss(make_run: MakeRun) -> None:
    more = {"val_loss_stderr": 0.01, "train_split_loss": 2.5}
    run = run_with(make_run, eval_line(0, 5.0), {**eval_line(20, 2.75), **more}, {**eval_line(30, 3.0), **more})
    assert chart_of([run], "Gap to the train split").lines[0].series.value.tolist() == [0.25, 0.5]
    assert [line.label for line in chart_of([run], "Loss").lines] == ["training", "validation", "train split"]
    known = facts(run).final
    assert known is not None and (known.error, known.train_split) == (0.01, 2.5)
    assert not any("stderr" in chart.title for chart in charts([run]))


def on_corpus(make_run: MakeRun, name: str, source: str, tokenizer: str = "gpt2") -> RunData:
    run = run_with(make_run, eval_line(30, 3.3), name=name)
    run.manifest = {"tokenizer": {"name": tokenizer}, "sources": [{"name": source}]}
    return run


def test_published_losses_are_of_the_same_text_and_tokenizer(make_run: MakeRun) -> None:
    same, other = on_corpus(make_run, "a", "fineweb-edu"), on_corpus(make_run, "b", "files")
    assert [value for _, value in losses([same])] == [3.2924]
    assert losses([other]) == losses([same, other]) == []
    assert losses([on_corpus(make_run, "c", "fineweb-edu", "bpe:8192")]) == []
    web = on_corpus(make_run, "d", "openwebtext")
    assert [value for _, value in losses([web])] == [3.12]  # the larger ones are further than the next to reach
    web.series["eval.val_loss"].value[:] = 3.0
    assert [value for _, value in losses([web])] == [3.12, 2.84]


def test_a_run_of_long_ago_has_no_tasks(make_run: MakeRun, tmp_path: Path) -> None:
    run = read_run(make_run())
    assert run.tasks == [] and axis([run]) == "step"


def test_checkpoints_that_were_evaluated_later(make_run: MakeRun) -> None:
    folder = make_run(metrics=[train_line(10, 3.0), train_line(30, 3.0), task_line(10, 0.25)])
    for step, value in ((10, 0.9), (30, 0.3)):
        (folder / "evals" / f"step_{step:08d}").mkdir(parents=True)
        result = {**task_line(step, value), "name": "hellaswag"}
        (folder / "evals" / f"step_{step:08d}" / "results.json").write_text(json.dumps({"tasks": [result, 3]}))
    (folder / "evals" / "step_x").mkdir()
    (folder / "evals" / "step_x" / "results.json").write_text("{")
    run = read_run(folder)
    assert [(one.step, one.metrics["acc_norm"]) for one in run.tasks] == [(10, 0.25), (30, 0.3)]
    assert run.problems == ["evals/step_x/results.json could not be read as JSON and is left out."]
