"""The `overnight` command: a table of commands, each a module that is imported only when it is called."""

from __future__ import annotations

import gc
import importlib
import io
import sys
from collections.abc import Sequence

from overnight import __version__
from overnight.errors import UserError, suggestion
from overnight.words import printable

COMMANDS = {  # name: what it does, as `overnight --help` prints it
    "demo": "prepare text, train a small model, sample from it and write a report: no network needed",
    "prepare": "text into a dataset folder: your files, stdlib, shakespeare, FineWeb and the rest of the hub",
    "data": "what is in a dataset folder; --check verifies every hash",
    "presets": "the named configurations",
    "doctor": "what this machine, or a cluster, can do for training, and what must be put right first",
    "bench": "how fast a preset trains on this machine, and where its time and memory go",
    "plan": "what a run will take: time, memory, disk and money, by a short trial on this machine",
    "train": "train a model, or go on with a run",
    "verify": "whether training is the same on one process and on many: small runs beside a float64 loop",
    "stop": "ask a running training to write a checkpoint and end",
    "sample": "text from a run's model, or from weights of another program",
    "eval": "loss, HellaSwag and other tasks, of a run or of weights from elsewhere",
    "lm_eval": "lm-evaluation-harness's own command, with `--model overnight` for what eval reads",
    "export": "a model as files for other programs, proven by reloading them",
    "inspect": "the tensors of a run, or of weights from elsewhere: norms, singular values, pictures",
    "watch": "follow runs while they go, on a page of this machine or in the terminal",
    "report": "one self-contained HTML file from one or several runs",
    "compare": "is one recipe better than another: the difference of runs, with its interval",
}


def help_text() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: overnight COMMAND [OPTIONS]\n\n"
        "Train GPT-2-class language models from scratch.\n\n"
        f"commands:\n{rows}\n\n"
        "options:\n"
        "  --version  print the version\n"
        "  --debug    show the traceback of an error\n\n"
        "`overnight COMMAND --help` lists a command's options. New here? Begin with `overnight demo`."
    )


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; errors are raised."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"overnight {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command '{name}'{suggestion(name, COMMANDS)}; `overnight --help` lists them")
    return int(importlib.import_module(f"overnight.cli.{name}").main(rest) or 0)


def guarded(arguments: Sequence[str]) -> int:
    """`run`, with a user's mistake, or what the system refuses, as one line on stderr and exit code 2."""
    debug = "--debug" in arguments
    try:
        return run([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        sys.stdout = None  # what is still buffered has nowhere to go
        return 1
    except (UserError, OSError) as error:
        if debug:
            raise
        text = str(_refused(error) if isinstance(error, OSError) else error)
        # words of a file may be in it: none of them shall move the terminal's cursor
        print("overnight: " + printable(text), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("overnight: interrupted", file=sys.stderr)
        return 130


def _refused(error: OSError) -> str:
    """What the system refused, such as a folder in whose place is a file, or a full disk."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks is no reason to stop
    code = guarded(sys.argv[1:])
    gc.freeze()  # else Python looks through all of torch's objects before it leaves, for most of a second
    sys.exit(code)
