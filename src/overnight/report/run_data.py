"""What a report knows about a run: read from its folder alone, be it finished, under way or broken off."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overnight.errors import UserError
from overnight.following import Growing
from overnight.report.lines import step_of
from overnight.report.metrics_file import MetricsReader, TaskResult, later_results
from overnight.report.series import Clock, Json, Numbers, Series
from overnight.report.time_spent import SAMPLING, Spent


@dataclass(frozen=True)
class Reference:
    """Where the validation loss of other runs with the same recipe lies."""

    name: str
    step: Numbers
    low: Numbers
    high: Numbers
    verdict: str
    """inside, above or below; empty where nothing was compared."""
    text: str
    """For the top of the report."""


LINES = ("attempts", "metrics", "samples", "decisions")  # the JSON lines files of a run


@dataclass
class RunData:
    """A run folder's content, tolerant of whatever is not there yet; or what the log of another program holds."""

    name: str
    folder: Path
    series: dict[str, Series]
    """By kind and name: `train.loss`, `eval.val_loss`, and whatever else the lines hold."""
    clock: Clock
    tasks: list[TaskResult] = field(default_factory=list)
    """Results of evaluations other than the loss, in order of steps."""
    config: Json = field(default_factory=dict)
    last: Json = field(default_factory=dict)
    """The last training line, as it was written; empty where there is none."""
    samples: list[Json] = field(default_factory=list)
    attempts: list[Json] = field(default_factory=list)
    decisions: list[Json] = field(default_factory=list)
    manifest: Json = field(default_factory=dict)
    """The dataset's manifest, where its folder is still there."""
    baselines: list[Json] = field(default_factory=list)
    """What was measured on the validation split of that dataset with other models, and kept beside it."""
    notes: list[Json] = field(default_factory=list)
    spent: Spent | None = None
    """Where the time went, as far as the lines tell."""
    program: str = "overnight"
    """What wrote it."""
    reference: Reference | None = None
    """Where runs of the same recipe are known to lie, and how this one stands."""
    problems: list[str] = field(default_factory=list)
    """What in the folder could not be read, in words."""


def read_run(folder: Path) -> RunData:
    """Reads a run folder; a UserError where the folder is not one."""
    return RunReader(folder).read()


class RunReader:
    """Reads a run folder again and again; of its long files only what was added since the last time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: Growing(folder / f"{name}.jsonl") for name in LINES}
        self.attempts: list[Json] = []
        self.samples: list[Json] = []
        self.decisions: list[Json] = []
        self.reader = MetricsReader([])

    def read(self) -> RunData:
        """The run as it is now; a UserError where the folder is not one."""
        config = _config(self.folder)
        new_attempts = list(self.files["attempts"].unread())
        if new_attempts or any(file.rewound() for file in self.files.values()):
            self._start_over()  # the run went on from a checkpoint, and the attempts tell its clock
        for line in self.files["metrics"].unread():
            self.reader.add(line)
        self.samples += (line for line in self.files["samples"].unread() if step_of(line) is not None)
        self.decisions += self.files["decisions"].unread()
        problems = [problem for name in LINES for problem in self.files[name].problems()]
        metrics = self.reader.metrics()
        for line in self.samples:
            metrics.watch.took(SAMPLING, line.get("time"))
        return RunData(
            name=self.folder.resolve().name,
            folder=self.folder,
            series=metrics.series,
            clock=metrics.clock,
            tasks=_with_later(metrics.tasks, later_results(self.folder, problems)),
            config=config,
            last=metrics.last,
            samples=list(self.samples),
            attempts=self.attempts,
            decisions=list(self.decisions),
            manifest=_manifest(self.attempts),
            baselines=_baselines(self.attempts),
            notes=_notes(self.folder / "notes.json", problems),
            spent=metrics.watch.spent(),
            problems=problems,
        )

    def _start_over(self) -> None:
        for file in self.files.values():
            file.start_over()
        self.attempts, self.samples, self.decisions = list(self.files["attempts"].unread()), [], []
        self.reader = MetricsReader(self.attempts)


def _with_later(tasks: list[TaskResult], later: list[TaskResult]) -> list[TaskResult]:
    """The results of the run itself, and those of its checkpoints where it has none on as many examples, in order of
    steps."""
    known = {(one.task, one.protocol, one.step, one.examples) for one in tasks}
    others = [one for one in later if (one.task, one.protocol, one.step, one.examples) not in known]
    return sorted([*tasks, *others], key=lambda one: one.step)


def _config(folder: Path) -> Json:
    path = folder / "config.json"
    advice = "give a folder that `overnight train` wrote"
    if not folder.exists():
        raise UserError(f"{folder} does not exist; {advice}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a run folder (it has no config.json); {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {advice}") from None
    if not isinstance(config, dict) or config.get("format") != "overnight-config":
        raise UserError(f"{path} is not the configuration of a run; {advice}")
    if config.get("version") != 1:
        raise UserError(f"{path} has version {config.get('version')!r}, and only 1 is known here; update overnight")
    return config


def _baselines(attempts: Sequence[Json]) -> list[Json]:
    """The losses on the validation split in the dataset's baselines.json."""
    found = _of_dataset(attempts, "baselines.json").get("baselines")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    numbers = [
        {name: value for name, value in entry.items() if name == "name" or _is_number(value)}
        for entry in entries
        if entry.get("split") == "val" and isinstance(entry.get("name"), str)
    ]
    return [entry for entry in numbers if "loss" in entry]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _manifest(attempts: Sequence[Json]) -> Json:
    """What the last attempt's dataset is; another program's token files have no manifest.json, so it wrote it down."""
    dataset = attempts[-1].get("dataset") if attempts else None
    written_down = dataset.get("manifest") if isinstance(dataset, dict) else None
    return written_down if isinstance(written_down, dict) else _of_dataset(attempts, "manifest.json")


def _of_dataset(attempts: Sequence[Json], name: str) -> Json:
    """A JSON file beside the dataset that the last attempt read, where it still can be found."""
    dataset = attempts[-1].get("dataset") if attempts else None
    path = dataset.get("path") if isinstance(dataset, dict) else None
    if not isinstance(path, str):
        return {}
    try:
        content = json.loads((Path(path) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _notes(path: Path, problems: list[str]) -> list[Json]:
    """The sections of notes.json: what a run's maker wants shown at the top of its report."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        problems.append("notes.json could not be read as JSON and is left out.")
        return []
    sections = notes.get("sections") if isinstance(notes, dict) else None
    return [section for section in sections if isinstance(section, dict)] if isinstance(sections, list) else []
