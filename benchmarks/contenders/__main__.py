"""One contender: its answers go to the standard output as lines of JSON, all that it prints itself to the errors."""

from __future__ import annotations

import importlib
import json
import os
import sys

from contenders.task import Gate, Task


def main() -> None:
    name, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    importlib.import_module(f"contenders.{name}").run(task, Gate(task, answers))


if __name__ == "__main__":
    main()
