"""What trackers get, and when: each line once, in the order of steps, over any number of attempts."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import UserError
from overnight.tracking import adapters, sender
from overnight.tracking.adapters import Tensorboard
from overnight.tracking.job import Job, Kept
from overnight.tracking.lines import numbers
from overnight.tracking.sender import Sender


class Recorder:
    """A tracker that keeps what it gets; one that forgets when asked, like TensorBoard, or not, like wandb."""

    where = "here"

    def __init__(self, forgets: bool = False) -> None:
        self.forgets, self.got, self.closed = forgets, [], False

    def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
        assert not self.got or step >= self.got[-1][0], "steps fell"
        self.got.append((step, *sorted(numbers)))

    def text(self, step: int, name: str, text: str, moment: float | None) -> None:
        assert not self.got or step >= self.got[-1][0], "steps fell"
        self.got.append((step, name, text))

    def rewind(self, step: int) -> bool:
        if self.forgets:
            self.got = [one for one in self.got if one[0] < step]
        return self.forgets

    def close(self) -> None:
        self.closed = True


def train(step: int, loss: float = 2.0) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "time": {"now": "2026-01-02T03:04:05+00:00"}}


def evaluation(step: int) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "val_loss": 3.0}


def sample(step: int) -> dict[str, Any]:
    return {"step": step, "prompt": "a", "texts": ["ab", "ac"]}


def add(run: Path, *lines: dict[str, Any]) -> None:
    for line in lines:
        with (run / ("metrics.jsonl" if "kind" in line else "samples.jsonl")).open("a") as file:
            file.write(json.dumps(line) + "\n")


def sending(run: Path, tracker: Recorder, step: int = 0) -> Sender:
    (run / "trackers").mkdir(exist_ok=True)
    job = Job(str(run), "wandb", step)
    return Sender(job, tracker, Kept.read(job.folder / "wandb.json"))


def test_lines_become_flat_names() -> None:
    line = {
        "kind": "train", "step": 10, "tokens": 512, "epoch": 0.5, "loss": 2.0, "lr": None, "words": "x", "on": True,
        "time": {"seconds": 3.0, "tokens_per_second": 99.0, "now": "2026-01-02T03:04:05+00:00"},
    }  # fmt: skip
    assert numbers(line) == {"tokens": 512, "train/epoch": 0.5, "train/loss": 2.0, "train/tokens_per_second": 99.0}
    line = {"kind": "eval", "step": 10, "tokens": 512, "val_loss": 2.0, "val_bits_per_byte": 1.0, "train_loss": 1.9,
            "hellaswag": {"acc": 0.3, "norm": {"acc": 0.4}}}  # fmt: skip
    assert numbers(line) == {"tokens": 512, "val/loss": 2.0, "val/bits_per_byte": 1.0, "eval/train_loss": 1.9,
                             "hellaswag/acc": 0.3, "hellaswag/norm/acc": 0.4}  # fmt: skip
    line = {"kind": "task", "task": "hellaswag", "step": 10, "tokens": 512, "metrics": {"acc": 0.3}, "examples": 9}
    assert numbers(line) == {"tokens": 512, "hellaswag/acc": 0.3}


def test_samples_stand_among_the_numbers(tmp_path: Path) -> None:
    tracker = Recorder()
    sending_now = sending(tmp_path, tracker)
    add(tmp_path, train(10), sample(10), sample(20), train(20), train(30), sample(40))
    sending_now.send()
    assert tracker.got == [(10, "train/loss"), (10, "samples", "ab\n\nac"), (20, "train/loss"),
                           (20, "samples", "ab\n\nac"), (30, "train/loss")]  # fmt: skip
    sending_now.finish()
    assert tracker.got[5:] == [(40, "samples", "ab\n\nac")] and tracker.closed


def test_a_run_that_went_on_is_sent_once(tmp_path: Path) -> None:
    """A tracker whose steps cannot fall skips the steps that are made again; the rest follows."""
    tracker = Recorder()
    first = sending(tmp_path, tracker)
    add(tmp_path, train(10), evaluation(10), train(20), train(30))
    first.send()  # and is killed
    (tmp_path / "metrics.jsonl").write_text("")
    add(tmp_path, train(10), evaluation(10), train(20), evaluation(20), train(30), train(40))
    second = sending(tmp_path, tracker, step=10)
    second.tracker.got.clear()  # type: ignore[attr-defined]
    second.finish()
    assert tracker.got == [(20, "val/loss"), (40, "train/loss")]


def test_what_was_missed_is_sent_at_the_next_start(tmp_path: Path) -> None:
    add(tmp_path, train(10), train(20), train(30))
    tracker = Recorder()
    sending(tmp_path, tracker, step=20).finish()
    assert [step for step, _ in tracker.got] == [10, 20, 30]


def test_a_tracker_that_forgets_gets_the_steps_of_now(tmp_path: Path) -> None:
    tracker = Recorder(forgets=True)
    now = sending(tmp_path, tracker)
    add(tmp_path, train(10), train(20), train(30))
    now.send()
    (tmp_path / "metrics.jsonl").write_text("")
    add(tmp_path, train(10), train(20), train(25))
    again = sending(tmp_path, tracker, step=20)
    again.finish()
    assert [step for step, _ in tracker.got] == [10, 20, 25]
    assert again.kept.sent == {"train": 25}


def test_files_cut_back_while_training_goes_on(tmp_path: Path) -> None:
    for forgets, expected in ((True, [10, 15, 40]), (False, [10, 20, 30, 40])):
        run = tmp_path / str(forgets)
        run.mkdir()
        tracker = Recorder(forgets)
        now = sending(run, tracker)
        add(run, train(10), train(20), train(30))
        now.send()
        (run / "metrics.jsonl").write_text("")
        add(run, train(10), train(15), train(40))
        now.send()
        assert [step for step, _ in tracker.got] == expected


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_reads_back_what_was_measured_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    job = Job(str(tmp_path), "tensorboard", 0)
    job.folder.mkdir()
    add(tmp_path, train(10, 3.0), evaluation(10), sample(10), train(20, 2.5), train(30, 2.25))
    kept = Kept.read(job.folder / "tensorboard.json")
    first = Sender(job, Tensorboard(job, kept), kept)
    first.finish()
    (tmp_path / "metrics.jsonl").write_text("")
    add(tmp_path, train(10, 3.0), evaluation(10), train(20, 2.5), train(30, 1.5), train(40, 1.0))
    job = Job(str(tmp_path), "tensorboard", 20)
    kept = Kept.read(job.folder / "tensorboard.json")
    Sender(job, Tensorboard(job, kept), kept).finish()
    assert scalars(job.folder / "tensorboard", "train/loss") == [(10, 3.0), (20, 2.5), (30, 1.5), (40, 1.0)]
    assert scalars(job.folder / "tensorboard", "val/loss") == [(10, 3.0)]


def test_a_failure_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recorder):
        def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
            raise OSError("no\nroute to host")

    monkeypatch.setitem(adapters.TRACKERS, "wandb", lambda job, kept: Broken())
    (tmp_path / "trackers").mkdir()
    add(tmp_path, train(10), train(20))
    said: list[str] = []
    with pytest.raises(OSError, match="no"):
        sender.run(Job(str(tmp_path), "wandb", 0), threading.Event(), said.append)
    assert said[0] == "here" and len(said) == 2
    assert said[1].startswith("OSError: no route to host; training goes on without it")


def test_a_file_that_no_tracker_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text("[]")
    with pytest.raises(UserError, match=r"wandb.json is not what a tracker kept; remove it"):
        Kept.read(tmp_path / "wandb.json")
