"""What is read from a run folder, whatever state it is in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_runs import CONFIG, MakeRun, attempt_line, eval_line, train_line, write_lines

from overnight.errors import UserError
from overnight.report.facts import bad_steps, facts, not_numbers
from overnight.report.page import write_report
from overnight.report.run_data import read_run


def test_headline_of_a_finished_run(make_run: MakeRun) -> None:
    run = read_run(make_run())
    known = facts(run)
    assert (known.step, known.steps, known.finished) == (200, 200, True)
    assert known.final is not None and known.final == known.best
    assert known.final.loss == pytest.approx(2.1 + 3 * math.exp(-4))
    assert known.final.perplexity == pytest.approx(math.exp(known.final.loss))
    assert known.final.bits_per_byte == pytest.approx(known.final.loss / 2)
    assert (known.tokens, known.epochs, known.seconds) == (512 * 200, 2.0, 20.0)
    assert (known.tokens_per_second, known.device) == (5000.0, "cpu")
    assert run.series["train.loss"].step.tolist() == list(range(10, 201, 10))
    assert run.problems == []


def test_best_is_not_always_the_last(make_run: MakeRun) -> None:
    run = read_run(make_run(metrics=[eval_line(0, 5.0), eval_line(50, 2.0), eval_line(100, 2.5)]))
    known = facts(run)
    assert known.best is not None and known.final is not None
    assert (known.best.step, known.final.step) == (50, 100)


def test_seconds_run_on_over_attempts(make_run: MakeRun) -> None:
    lines = [train_line(step, 3.0, seconds=step) for step in (10, 20, 30)]
    lines += [eval_line(35, 3.0)]
    lines += [train_line(step, 3.0, seconds=step - 15) for step in (40, 50)]  # gone on from 30, and slow to start
    run = read_run(make_run(metrics=lines, attempts=[attempt_line(1, 0), attempt_line(2, 30)]))
    assert run.clock.seconds.tolist() == [10, 20, 30, 30, 55, 65]


def test_evaluations_do_not_turn_the_clock_back(make_run: MakeRun) -> None:
    lines = [eval_line(0, 5.0), train_line(10, 3.0, seconds=10), eval_line(10, 3.0), train_line(20, 3.0, seconds=20)]
    for name, attempts in (("with", [attempt_line(1, 0)]), ("without", [])):
        run = read_run(make_run(name, metrics=lines, attempts=attempts))
        assert run.clock.seconds.tolist() == [0, 10, 20]


def test_an_attempt_of_which_nothing_was_kept_adds_no_time(make_run: MakeRun) -> None:
    lines = [train_line(10, 3.0, seconds=10), train_line(20, 3.0, seconds=4)]
    attempts = [attempt_line(1, 0), attempt_line(2, 10), attempt_line(3, 10)]
    assert read_run(make_run(metrics=lines, attempts=attempts)).clock.seconds.tolist() == [10, 14]


def test_seconds_without_attempts_file(make_run: MakeRun) -> None:
    lines = [train_line(step, 3.0, seconds=seconds) for step, seconds in ((10, 10), (20, 20), (30, 2), (40, 12))]
    assert read_run(make_run(metrics=lines, attempts=[])).clock.seconds.tolist() == [10, 20, 22, 32]


def test_the_later_line_for_a_step_holds(make_run: MakeRun) -> None:
    run = read_run(make_run(metrics=[train_line(10, 5.0), train_line(20, 4.0), train_line(10, 3.0)]))
    assert run.series["train.loss"].step.tolist() == [10, 20]
    assert run.series["train.loss"].value.tolist() == [3.0, 4.0]


def test_a_torn_last_line_is_left_out_in_silence(make_run: MakeRun) -> None:
    folder = make_run()
    for name in ("metrics", "samples", "decisions", "attempts"):
        with (folder / f"{name}.jsonl").open("ab") as file:
            file.write('{"kind": "train", "step": 210, "text": "ä'.encode()[:-1])
    run = read_run(folder)
    assert facts(run).step == 200
    assert run.problems == []


def test_a_broken_line_is_told(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{half", "[1]", *lines[3:]]) + "\n")
    run = read_run(folder)
    assert len(run.series["train.loss"].step) == 20
    assert run.problems == ["metrics.jsonl: 2 lines are not JSON objects and left out, the first is line 4."]


def test_losses_that_are_not_numbers(make_run: MakeRun) -> None:
    folder = make_run()
    extra = ['{"kind":"train","step":210,"loss":NaN}', '{"kind":"train","step":220,"loss":null}',
             '{"kind":"train","step":230,"loss":-Infinity}', '{"kind":"eval","step":230,"val_loss":NaN}']  # fmt: skip
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(extra) + "\n")
    run = read_run(folder)
    assert not_numbers(run) == (
        "3 of 23 logged training losses are not numbers, the first at step 210. "
        "1 of 4 logged validation losses are not numbers, the first at step 230."
    )
    known = facts(run)
    assert known.final is not None and known.final.step == 200


def test_bad_steps(make_run: MakeRun) -> None:
    assert bad_steps(read_run(make_run())) == ""
    lines = [
        {"step": 40 + n, "name": "guard", "value": {"action": "skip", "step": 41 + n, "batch": 40 + n}, "reason": "nan"}
        for n in range(2)
    ]
    folder = make_run("bad", decisions=[*lines, {"step": 1, "name": "guard", "value": 3}])
    expected = "2 bad steps, the last one step 42 (nan); Decisions has all."
    assert bad_steps(read_run(folder)) == expected
    assert expected in write_report([folder], folder / "report.html").read_text(encoding="utf-8")


def test_only_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "overnight-config", "version": 1}')
    known = facts(read_run(tmp_path))
    assert (known.step, known.steps, known.final, known.device) == (0, None, None, "")


def test_steps_follow_tokens_and_decisions(make_run: MakeRun) -> None:
    train = {"steps": 9, "tokens": 1000, "tokens_per_step": 512}
    config = {**CONFIG, "recipe": {"train": train}}
    assert facts(read_run(make_run("tokens", config, decisions=[]))).steps == 2
    moved = [{"step": 200, "name": "train.steps", "value": 400}]
    assert facts(read_run(make_run("moved", decisions=moved))).steps == 400


def test_whatever_else_was_measured_is_kept(make_run: MakeRun) -> None:
    line = {"kind": "eval", "step": 10, "hellaswag_acc": 0.27, "arc": {"acc": 0.25, "words": "x"}, "on": True}
    series = read_run(make_run(metrics=[line])).series
    assert set(series) == {"eval.hellaswag_acc", "eval.arc.acc"}


def test_dataset_manifest_is_read_where_it_still_is(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"fingerprint": "f"}')
    used = {"path": str(tmp_path / "data"), "fingerprint": "f"}
    assert read_run(make_run("here", attempts=[attempt_line(1, 0, dataset=used)])).manifest == {"fingerprint": "f"}
    assert read_run(make_run("gone")).manifest == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a run folder (it has no config.json); give a folder that `overnight train` wrote"),
        ("{", "cannot be read as JSON"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "is not the configuration of a run"),
        ("[]", "is not the configuration of a run"),
        ('{"format": "overnight-config", "version": 2}', "has version 2, and only 1 is known here"),
    ],
)
def test_a_folder_that_is_not_a_run(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_run(tmp_path)
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_run(tmp_path / "nowhere")


def test_notes(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "notes.json").write_text(json.dumps({"sections": [{"title": "T"}, "no section"]}))
    assert read_run(folder).notes == [{"title": "T"}]
    (folder / "notes.json").write_text("{")
    assert read_run(folder).problems == ["notes.json could not be read as JSON and is left out."]


def test_many_lines_stream(make_run: MakeRun) -> None:
    folder = make_run(metrics=[])
    write_lines(folder / "metrics.jsonl", [train_line(step, 2.0) for step in range(1, 20_001)])
    assert len(read_run(folder).series["train.loss"].step) == 20_000
