"""The trackers: each with the same methods, its library imported when it is made."""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from overnight.tracking.job import Job, Kept

PROJECT = "overnight"  # unless another is given


class Tracker(Protocol):
    """One run in a tracker. Steps of what is logged never fall."""

    where: str
    """Where a person finds it."""

    def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
        """Numbers by name, measured at a step; `moment` in seconds since 1970."""

    def text(self, step: int, name: str, text: str, moment: float | None) -> None: ...

    def rewind(self, step: int) -> bool:
        """Forgets what was logged from `step` on; False where the tracker cannot forget."""

    def close(self) -> None: ...


class Wandb:
    """A run of Weights & Biases; the account and its key are those of its own settings."""

    def __init__(self, job: Job, kept: Kept) -> None:
        import wandb

        kept.id = kept.id or secrets.token_hex(4)
        self.wandb = wandb
        self.run = wandb.init(
            project=job.project or PROJECT, entity=job.entity or None, group=job.group or None, name=_name(job),
            id=kept.id, resume="allow", config=_config(job), allow_val_change=True, dir=str(job.folder),
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.where = str(self.run.url or f"offline, in {job.folder / 'wandb'}")

    def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
        self.run.log(numbers, step=step)

    def text(self, step: int, name: str, text: str, moment: float | None) -> None:
        self.run.log({name: self.wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step)

    def rewind(self, step: int) -> bool:
        return False

    def close(self) -> None:
        self.run.finish()


class Tensorboard:
    """Event files in the run folder."""

    def __init__(self, job: Job, kept: Kept) -> None:
        self.folder = job.folder / "tensorboard"
        self.where = f"tensorboard --logdir {self.folder}"
        kept.id = kept.id or self.folder.name
        self._open(None)

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(self.folder), purge_step=purge_step)  # type: ignore[no-untyped-call,unused-ignore]

    def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step, walltime=moment)

    def text(self, step: int, name: str, text: str, moment: float | None) -> None:
        # indented, so that its markdown shows the text as it is
        self.writer.add_text(name, "    " + text.replace("\n", "\n    "), step, walltime=moment)

    def rewind(self, step: int) -> bool:
        self.writer.close()
        self._open(step)
        return True

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A run of trackio: kept on this machine, or in a Space where its own settings say so."""

    def __init__(self, job: Job, kept: Kept) -> None:
        import trackio

        kept.id = kept.id or secrets.token_hex(4)
        self.trackio, project = trackio, job.project or PROJECT
        # its runs are told apart by name alone, and two run folders may have the same
        trackio.init(
            project=project,
            name=f"{_name(job)}-{kept.id}",
            group=job.group or None,
            config=_config(job),
            resume="allow",
        )
        self.where = f"trackio show --project {project}"

    def log(self, step: int, numbers: dict[str, float], moment: float | None) -> None:
        self.trackio.log(numbers, step=step)

    def text(self, step: int, name: str, text: str, moment: float | None) -> None:
        self.trackio.log({name: self.trackio.Markdown(f"```\n{text}\n```")}, step=step)

    def rewind(self, step: int) -> bool:
        return False

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Job, Kept], Tracker]] = {
    "wandb": Wandb,
    "tensorboard": Tensorboard,
    "trackio": Trackio,
}


def _name(job: Job) -> str:
    return job.name or Path(job.run).resolve().name


def _config(job: Job) -> Any:
    return json.loads((Path(job.run) / "config.json").read_text(encoding="utf-8"))
