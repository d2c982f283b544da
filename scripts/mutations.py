"""Damages the files of datasets and runs at random, and looks at what every command makes of them.

    python scripts/mutations.py --mutations 1000 [--seed 0] [--out FILE.md]

A small dataset and a run that was interrupted are copied, one of their files is changed (bytes flipped, cut, fields
taken away, types changed, numbers made huge, negative or NaN, lines doubled or lost), and commands are run on the copy:
`train`, which goes on with the run, and two of `sample`, `eval`, `inspect`, `report`, `watch --terminal`, `data` and
`data --check`. Each must end with one line that says what is wrong (exit code 2), or with a correct result: training
with the weights of the undisturbed run, bit by bit (to 1e-5 where config.json asked for another micro-batch), sampling
and evaluation with the same text and loss, unless they say that a damaged checkpoint was passed over. Any exception of
ours, any command that does not end within a minute, and any other result is a defect. Exit code 0 only if there is
none.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, LAST = 6, 4
ROUNDING = 1e-5
LIMIT = 60  # seconds for one command
OPTIONS = [
    *("--device", "cpu", "--threads", "1", "--precision", "fp32", "--compile", "off", "--micro-batch", "2"),
    *("--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2", "--model.dropout", "0"),
    *("--data.sequence-length", "16", "--train.tokens-per-step", "64", "--train.steps", str(STEPS)),
    *("--log.every", "1", "--eval.every", "2", "--eval.tokens", "200", "--eval.train-tokens", "0"),
    *("--sample.every", "3", "--sample.samples", "1", "--sample.length", "8", "--sample.prompt", "d"),
    *("--checkpoint.every", "2", "--checkpoint.keep-last", "9"),
]
PASSED_OVER = "this checkpoint is damaged, and passed over"
PRESET = "shakespeare-char-cpu"


@dataclass
class Outcome:
    """What a command did: its exit code and what it printed, or the exception that came out of it."""

    code: int
    out: str
    err: str
    escaped: str = ""

    def defect(self) -> str:
        """What is wrong with it, if something is."""
        if self.escaped:
            return self.escaped
        if "Traceback" in self.out + self.err:
            return "a stack trace was printed"
        lines = [line for line in self.err.splitlines() if line.startswith("overnight: ")]
        if self.code and (self.code != 2 or len(lines) != 1):
            return f"exit code {self.code} with {len(lines)} lines of error: {self.err[:300]!r}"
        return ""


class Hang(BaseException):
    """A command that does not end."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Hang in what takes longer; without effect where there is no SIGALRM."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: object) -> Outcome:
    """`overnight ARGUMENTS` in this process."""
    from overnight import cli

    out, err, code, escaped = io.StringIO(), io.StringIO(), 1, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(LIMIT):
        try:
            code = cli.guarded([str(argument) for argument in arguments])
        except Hang:
            escaped = f"did not end within {LIMIT} s: " + "".join(traceback.format_exc().splitlines()[-6:-1])
        except BaseException:
            escaped = traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), escaped)


def commands(home: Path) -> dict[str, list[object]]:
    """What is run on a copy, by name. Training changes it, and comes last."""
    run, data = home / "run", home / "data"
    return {
        "sample": ["sample", run, "--max-new-tokens", 8, "--temperature", 0, "--prompt", "d", "--device", "cpu"],
        "eval": ["eval", run, "--data", data, "--tokens", 200, "--device", "cpu", "--json"],
        "inspect": ["inspect", run],
        "report": ["report", run, "--out", home / "report.html"],
        "watch": ["watch", "--terminal", run],
        "data": ["data", data, "--documents", 1],
        "data --check": ["data", data, "--check"],
        "train RUN": ["train", run, "--data", data],
        "train": ["train", PRESET, "--data", data, "--out", run, *OPTIONS],
    }


# ---- mutations


def targets(home: Path) -> list[Path]:
    """The files that are changed, relative to `home`."""
    run, data = home / "run", home / "data"
    newest = run / "checkpoints" / f"step_{LAST:08d}"
    files = [data / "manifest.json", *sorted(data.glob("*.npy")), *sorted(data.glob("*.parquet"))]
    files += [
        run / name for name in ("config.json", "decisions.jsonl", "attempts.jsonl", "metrics.jsonl", "samples.jsonl")
    ]
    files += [run / "shards.json", *sorted(newest.iterdir())]
    return [file.relative_to(home) for file in files]


VALUES = (None, True, -1, 0, 2**70, -(2**63), 1e308, -1e-300, 0.5, "", "x", "NaN", "\0", [], {}, [1, [2]], {"a": None})
WORDS = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 400)


def flip(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 3, 20))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.choice((0, dice.randrange(len(content)), len(content) - 1))]


def grow(content: bytes, dice: random.Random) -> bytes:
    return content + dice.choice((b"\0", b"\n", b"{}", content[: dice.randrange(1, len(content))]))


def lines(content: bytes, dice: random.Random) -> bytes:
    """A line doubled, lost, or changed for another."""
    found = content.splitlines(keepends=True)
    a, b = dice.randrange(len(found)), dice.randrange(len(found))
    kind = dice.choice(("double", "lose", "swap"))
    if kind == "double":
        found.insert(b, found[a])
    elif kind == "lose":
        del found[a]
    else:
        found[a], found[b] = found[b], found[a]
    return b"".join(found)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values within a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def fields(content: bytes, dice: random.Random) -> bytes:
    """A field of a JSON file, or of a line of one, taken away, doubled, or given another value."""
    try:
        pieces, indent, end = [json.loads(content)], 2, b"\n"
    except ValueError:
        pieces, indent, end = [json.loads(line) for line in content.splitlines()], None, b"\n"
    number = dice.randrange(len(pieces))
    *path, key = dice.choice(list(places(pieces[number])))
    owner = pieces[number]
    for step in path:
        owner = owner[step]
    mark = "@@@"
    kind = dice.choice(("remove", "value", "value", "number", "word", "move"))
    old = owner[key]
    if kind == "remove":
        del owner[key]
    elif kind == "number" and isinstance(old, (int, float)) and not isinstance(old, bool):
        owner[key] = dice.choice((old + 1, -old, old * 1000, old / 3, old - 1))
    elif kind == "move" and isinstance(owner, dict):
        owner[str(key) + "_"] = owner.pop(key)
    else:
        owner[key] = mark if kind == "word" else dice.choice(VALUES)
    text = "\n".join(json.dumps(piece, indent=indent) for piece in pieces)
    return text.replace(f'"{mark}"', dice.choice(WORDS)).encode() + end


def mutate(file: Path, dice: random.Random) -> str:
    """Changes a file; returns how, in words."""
    content = file.read_bytes()
    kinds = [flip, cut, grow]
    if file.suffix in (".json", ".jsonl"):
        kinds += [lines, fields, fields, fields, fields]
    for _ in range(20):
        kind = dice.choice(kinds)
        changed = kind(content, dice)
        if changed != content:
            file.write_bytes(changed)
            return kind.__name__
    file.unlink()
    return "removed"


# ---- judgement


def tensors(run: Path) -> dict[str, bytes]:
    """The files of the last checkpoint."""
    last = run / "checkpoints" / f"step_{STEPS:08d}"
    return {file.name: file.read_bytes() for file in sorted(last.glob("*.safetensors"))}


class Judge:
    """What commands give on undamaged files, and what is wrong with another outcome."""

    def __init__(self, home: Path) -> None:
        self.home = home
        command("prepare", "stdlib", "--out", home / "data", "--tokenizer", "bytes", "--limit-tokens", 12000)
        whole = command(*commands(home)["train"])
        assert not whole.code, whole.err + whole.escaped
        self.weights = tensors(home / "run")
        shutil.rmtree(home / "run" / "checkpoints" / f"step_{STEPS:08d}")  # as if it had been killed before
        self.outcomes = {}
        for name in ("sample", "eval"):
            self.outcomes[name] = command(*commands(home)[name])
            assert not self.outcomes[name].code, self.outcomes[name].err + self.outcomes[name].escaped

    def as_undisturbed(self, run: Path) -> bool:
        """Whether a run has the weights that it must have."""
        from safetensors.numpy import load

        found = tensors(run)
        if found == self.weights or not decided_anew(run):
            return found == self.weights
        # what config.json says of the machine may change, which is a decision; rounding changes with it
        own, expected = (load(files["model.safetensors"]) for files in (found, self.weights))
        return all(float(abs(own[name] - expected[name]).max()) <= ROUNDING for name in expected)

    def defect(self, name: str, outcome: Outcome, home: Path) -> str:
        found = outcome.defect()
        if found or outcome.code:
            return found
        if name.startswith("train") and not self.as_undisturbed(home / "run"):
            return "SILENTLY WRONG: other weights"
        if PASSED_OVER in outcome.err:
            return ""
        if name == "sample" and outcome.out != self.outcomes[name].out:
            return f"SILENTLY WRONG: other text {outcome.out!r}"
        if name == "eval" and losses(outcome) != losses(self.outcomes[name]):
            return f"SILENTLY WRONG: other loss {outcome.out}"
        return ""


def decided_anew(run: Path) -> bool:
    """Whether the run's last attempt decided something."""
    last = json.loads((run / "decisions.jsonl").read_text().splitlines()[-1])
    return bool(last["attempt"] == 2)


def losses(outcome: Outcome) -> list[Any]:
    """All that an evaluation measured."""
    found = json.loads(outcome.out)
    return [value for value in json.dumps(found, sort_keys=True).split(",") if "loss" in value or "stderr" in value]


def examine(
    count: int, seed: int, folder: Path, every: bool = True
) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """Makes so many mutations, and runs three commands on each copy, or without `every` one of them.

    Returns how often (file, outcome) came about, and the defects, each with how to see it again.
    """
    judge = Judge(folder / "base")
    files = targets(judge.home)
    tally, defects = collections.Counter[tuple[str, str]](), []
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        home = folder / f"copy{number}"
        shutil.copytree(judge.home, home)
        file = files[number % len(files)]
        how = mutate(home / file, dice)
        named = commands(home)
        others = [name for name in named if not name.startswith("train")]
        chosen = [*dice.sample(others, 2), dice.choice(("train", "train", "train RUN"))]
        for name in chosen if every else [dice.choice(chosen)]:
            outcome = command(*named[name])
            found = judge.defect(name, outcome, home)
            tally[kind_of(file), "defect" if found else "refused" if outcome.code else "correct"] += 1
            if found:
                defects.append(f"number {number}, {how} {file}: {name}: {found}")
                print(defects[-1], flush=True)
        shutil.rmtree(home)
        if number % 50 == 49:
            print(f"{number + 1} mutations, {len(defects)} defects", flush=True)
    return tally, defects


def kind_of(file: Path) -> str:
    """What a file is called in the table."""
    if file.suffix == ".npy":
        return "shard"
    if file.suffix == ".parquet":
        return "*.docs.parquet"
    return f"checkpoint: {file.name}" if "checkpoints" in file.parts else file.name


def written(tally: collections.Counter[tuple[str, str]], defects: int, given: argparse.Namespace) -> str:
    rows = [(file, *(tally[file, what] for what in ("refused", "correct"))) for file in sorted({f for f, _ in tally})]
    ran, refused = sum(tally.values()), sum(row[1] for row in rows)
    return "\n".join(
        [
            "# Mutated files",
            "",
            f"    python scripts/mutations.py --mutations {given.mutations} --seed {given.seed}",
            "",
            f"{given.mutations:,} mutations, {ran:,} commands on them: {refused:,} were refused in one line, "
            f"{ran - refused - defects:,} gave the correct result, {defects} did anything else.",
            "",
            "| file | refused | correct result |",
            "|---|---|---|",
            *(f"| {file} | {refused} | {correct} |" for file, refused, correct in rows),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally, defects = examine(given.mutations, given.seed, Path(folder))
    text = written(tally, len(defects), given)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
