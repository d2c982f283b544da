"""What a step of a run was trained on, and what is known of it: from the run folder and the dataset's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overnight import deadline, optim
from overnight.data.mixture import Mixture
from overnight.dumps import FORMAT, found
from overnight.errors import UserError
from overnight.guard import NAME, Guard
from overnight.origins import Origins
from overnight.runs import RunFolder, datasets_of, read_lines
from overnight.session import open_dataset
from overnight.words import one_line

Json = dict[str, Any]
TEXTS, CHARACTERS = 4, 400  # sequences whose text is shown, and how much of it
DOCUMENTS = 3  # of a sequence that are told on the terminal
LISTED = 32  # sequences that are told there


def look(run: Path, step: int, data: str | None = None) -> Json:
    """All that is known of step `step`, counted from 1 as in metrics.jsonl. `data` says where its dataset is now.

    Raises UserError where the run has no such step, or its dataset is gone or not what it was.
    """
    folder = RunFolder.open(run)
    config = folder.config()
    recipe, index = config.recipe, step - 1
    scheduled, steps = deadline.as_decided(recipe, folder, index)
    if not 1 <= step <= steps:
        raise UserError(f"{run} has the steps 1 to {steps}, and no step {step}")
    mixture = _dataset(run, data)
    dataset = open_dataset(config, mixture)
    batch = Guard("off", folder.decisions).batch(index)
    batch = batch % recipe.overfit if recipe.overfit else batch
    numbers = dataset.sequences(batch, recipe.train.tokens_per_step // recipe.data.sequence_length)
    sequences = Origins(mixture, dataset).of(numbers)
    decode = mixture.tokenizer().decode
    for sequence, row in zip(sequences, dataset.tokens(numbers[:TEXTS])[0], strict=False):
        sequence["text"] = decode(row)[:CHARACTERS]
    return {
        "run": str(run),
        "step": step,
        "steps": steps,
        "batch": batch,
        "dataset": mixture.path,
        "lr": optim.learning_rate(scheduled, index, steps),
        **_measured(run, step),
        "decisions": _decisions(folder, step),
        "guard": [line for line in folder.decisions if line["name"] == NAME and line["value"].get("step") == step],
        "dumps": [_dump(path) for path in found(run, step)],
        "sequences": sequences,
    }


def _dataset(run: Path, data: str | None) -> Mixture:
    """What the run was trained on, where it is now."""
    known = datasets_of(run)
    if not known:
        raise UserError(f"{run} was never started: attempts.jsonl names no dataset")
    last, where = known[-1], data or str(known[-1]["path"])
    try:
        mixture = Mixture.open(where)
    except UserError as error:
        raise UserError(f"the dataset of {run} is not where it was: {error}; --data DIR says where it is now") from None
    if mixture.fingerprint != last["fingerprint"]:
        raise UserError(
            f"{where} is not the dataset that {run} was trained on (its fingerprint is another); --data DIR says where "
            "that is now"
        )
    return mixture


def _measured(run: Path, step: int) -> Json:
    """Loss and norm where they were logged, else those of the line before."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if line.get("kind") == "train"]
    reached = max((line["step"] for line in lines), default=0)
    before = [line for line in lines if line["step"] <= step]
    near = before[-1] if before else {}
    return {
        "reached": reached,
        "logged": near.get("step"),
        "loss": near.get("loss"),
        "grad_norm": near.get("grad_norm"),
    }


def _decisions(folder: RunFolder, step: int) -> Json:
    """What held at that step, but for the guard's, which are told apart."""
    names = dict.fromkeys(line["name"] for line in folder.decisions if line["step"] < step and line["name"] != NAME)
    return {name: folder.decided(name, step - 1) for name in names}


def _dump(path: Path) -> Json:
    """What is in a dump, but for the sequences, which are told anyway, and the norms, which are many."""
    try:
        content = json.loads((path / "dump.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {"folder": str(path), "problem": "dump.json is missing or was changed"}
    kept = ("batch", "reason", "loss", "grad_norm", "again")
    return {"folder": str(path), **{name: content.get(name) for name in kept}}


def lines(seen: Json) -> list[str]:
    """What `look` found, for a terminal."""
    shown = [
        f"{seen['run']}: step {seen['step']:,} of {seen['steps']:,}, batch {seen['batch']:,} of {seen['dataset']}",
        f"  learning rate {seen['lr']:.4g}, {_logged(seen)}",
        "  " + ", ".join(f"{name} {value}" for name, value in seen["decisions"].items()),
    ]
    for line in seen["guard"]:
        shown.append(f"  guard: {line['value']['action']} ({line['reason']})")
    for dump in seen["dumps"]:
        shown.append(f"  dump: {dump['folder']}{_told(dump)}")
    shown.append("")
    for sequence in seen["sequences"][:LISTED]:
        shown += _sequence(sequence, len({one["corpus"] for one in seen["sequences"]}) > 1)
    if (left := len(seen["sequences"]) - LISTED) > 0:
        shown.append(f"  and {left:,} more sequences; --json has them all")
    return [line[: len(line) - len(line.lstrip())] + one_line(line) for line in shown]


def _logged(seen: Json) -> str:
    if seen["step"] > seen["reached"]:
        return f"not made yet: the last line of metrics.jsonl is of step {seen['reached']:,}"
    loss, norm = (_number(seen[name]) for name in ("loss", "grad_norm"))
    at = "" if seen["logged"] == seen["step"] else f" at step {seen['logged']}, the last one before that was logged"
    return f"loss {loss}, norm of the gradient {norm}{at}"


def _told(dump: Json) -> str:
    if "problem" in dump:
        return f": {dump['problem']}"
    again = dump["again"] if isinstance(dump["again"], dict) else {}
    return f": {dump['reason']}; computed once more the loss was {_number(again.get('loss'))}"


def _sequence(sequence: Json, several: bool) -> list[str]:
    of = f" of {sequence['corpus']}" if several else ""
    begin = f"  sequence {sequence['number']:,}{of}, from token {sequence['position']:,}: "
    documents = sequence["documents"]
    if documents is None:
        shown = [begin + "ids alone do not tell where documents begin"]
    else:
        told = [f"{one['file']} row {one['row']} ({one['tokens']:,})" for one in documents[:DOCUMENTS]]
        more = f" and {len(documents) - DOCUMENTS} more" if len(documents) > DOCUMENTS else ""
        shown = [begin + ", ".join(told) + more]
    return shown + (["    " + one_line(sequence["text"])] if "text" in sequence else [])


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "not a number"
