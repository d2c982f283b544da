"""What one tracker is told when it is started, and what it keeps for the next start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from overnight.errors import UserError
from overnight.files import write_json

FOLDER = "trackers"  # in the run folder


@dataclass(frozen=True)
class Job:
    """One tracker of one attempt of a run."""

    run: str
    """The run folder."""
    tracker: str
    step: int
    """The step from which this attempt goes on."""
    project: str = ""
    entity: str = ""
    group: str = ""
    name: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.run) / FOLDER

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


@dataclass
class Kept:
    """A tracker's own file in the run folder: by it a run that goes on continues the same tracker run."""

    path: Path
    id: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    """The last step sent, by kind of line."""

    @classmethod
    def read(cls, path: Path) -> Kept:
        """What an earlier attempt kept; nothing where there was none."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, str(found["id"]), {str(kind): int(step) for kind, step in found["sent"].items()})
        except FileNotFoundError:
            return cls(path)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not what a tracker kept; remove it to begin a new tracker run") from None

    def write(self) -> None:
        write_json(self.path, {"id": self.id, "sent": self.sent})
