"""The parts of a report below its headline, each empty where the runs hold nothing to show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from overnight.report.charts import COLORS
from overnight.report.facts import dig
from overnight.report.run_data import RunData
from overnight.report.series import Json
from overnight.report.wording import Html, escape, join, moment, number, short, table
from overnight.words import DASH

MOST_SAMPLES = 60  # steps of a run whose samples are shown, the first and the last among them
MOST_TEXTS = 8
MOST_LETTERS = 4_000
MOST_ROWS = 200
GROUPS = {
    "recipe": ("Recipe", "what is learned"),
    "machine": ("Machine", "how it is computed"),
    "observe": ("Observe", "what is written, and when"),
}


def notes(runs: Sequence[RunData]) -> Html:
    """What the runs' makers want shown at the top."""
    parts = []
    for run in runs:
        for note in run.notes:
            title = str(note.get("title") or "Note")
            heading = escape(title if len(runs) == 1 else f"{run.name}: {title}")
            text = note.get("text")
            blocks = str(text).split("\n\n") if text else []
            content = join(Html(f"<p>{escape(block)}</p>\n") for block in blocks) + _note_table(note.get("table"))
            parts.append(f'<section class="note"><h2>{heading}</h2>\n{content}</section>\n')
    return Html("".join(parts))


def _note_table(value: Any) -> str:
    columns, rows = dig(value, "columns"), dig(value, "rows")
    rows = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    return table(columns if isinstance(columns, list) else [], rows[:MOST_ROWS]) if rows else ""


def samples(runs: Sequence[RunData]) -> Html:
    """Sampled texts in order of steps; the script puts them under a slider."""
    boxes = []
    for i, run in enumerate(runs):
        if not run.samples:
            continue
        count = len(run.samples)
        chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).astype(int)).tolist()
        note = f"{len(chosen)} of {count:,} are shown; all are in samples.jsonl."
        left_out = f'<p class="about">{note}</p>' if len(chosen) < count else ""
        heading = f'<h3><span class="swatch c{i % COLORS}"></span>{escape(run.name)}</h3>' if len(runs) > 1 else ""
        articles = join(_sample(run.samples[index]) for index in chosen)
        boxes.append(f'<div class="box">{heading}{left_out}{articles}</div>')
    if not boxes:
        return Html("")
    return Html(f'<div class="slider" id="slider" hidden></div><div class="boxes">{"".join(boxes)}</div>')


def _sample(line: Json) -> Html:
    step = int(line["step"])
    prompt = line.get("prompt") if isinstance(line.get("prompt"), str) else ""
    texts = line.get("texts")
    found = [str(text) for text in texts[:MOST_TEXTS]] if isinstance(texts, list) else []
    blocks = join(_text(text, str(prompt)) for text in found)
    return Html(f'<article class="sample" data-step="{step}"><h4>Step {step:,}</h4>{blocks}</article>\n')


def _text(text: str, prompt: str) -> Html:
    """One sampled text, its prompt marked. It may hold anything, letters that turn the writing around included."""
    given = prompt if prompt and text.startswith(prompt) else ""
    rest = text[len(given) :]
    cut = "…" if len(rest) > MOST_LETTERS else ""
    # HTML drops a line break right after <pre>; after <b> it stays, even where that is empty.
    return Html(f'<pre dir="auto"><b>{escape(given)}</b>{escape(rest[:MOST_LETTERS])}{cut}</pre>\n')


def configuration(runs: Sequence[RunData]) -> Html:
    """The settings; of several runs first those in which they differ."""
    runs = [run for run in runs if run.config]
    if not runs:
        return Html("")
    if len(runs) == 1:
        return join(_settings(runs[0].config, group) for group in GROUPS)
    settings = [dict(_flat({group: run.config.get(group) for group in GROUPS})) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [[name, *(one.get(name, DASH) for one in settings)] for name in names]
    unlike = [row for row in rows if any(value != row[1] for value in row[2:])]
    alike = [row[:2] for row in rows if row not in unlike]
    first = (
        f"<h3>What differs</h3>\n{table(['', *(run.name for run in runs)], unlike, 'settings')}"
        if unlike
        else "<p>The runs have the same configuration.</p>\n"
    )
    alike_table = table(["", ""], alike, "settings")
    same = f"<details><summary>The same in all runs</summary>{alike_table}</details>\n" if alike else ""
    return Html(first + same)


def _settings(config: Json, group: str) -> Html:
    rows = [[name, value] for name, value in _flat(config.get(group))]
    if not rows:
        return Html("")
    title, about = GROUPS[group]
    return Html(
        f'<details{" open" if group == "recipe" else ""}><summary>{title} <span class="about">{about}</span></summary>'
        f"{_columns(rows)}</details>\n"
    )


def _columns(rows: Sequence[Sequence[object]]) -> Html:
    """Names and values, in as many columns as the screen has room for."""
    cells = join(Html(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>") for name, value in rows)
    return Html(f'<dl class="settings">{cells}</dl>\n')


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects with their dotted names."""
    if isinstance(value, dict) and (value or not prefix):
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        yield prefix, value


def dataset(runs: Sequence[RunData]) -> Html:
    """What the runs learned from; a dataset that several share is shown once."""
    by_print: dict[str, list[RunData]] = {}
    for run in runs:
        used = dig(run.attempts[-1], "dataset") if run.attempts else None
        if isinstance(used, dict):
            by_print.setdefault(str(used.get("fingerprint") or used.get("path")), []).append(run)
    parts = []
    for users in by_print.values():
        names = f"<h3>{escape(', '.join(run.name for run in users))}</h3>\n" if len(runs) > 1 else ""
        parts.append(names + _dataset(users[-1]))
    return Html("".join(parts))


def _dataset(run: RunData) -> str:
    used, manifest = run.attempts[-1]["dataset"], run.manifest
    rows = [["folder", used.get("path")], ["fingerprint", _code(str(used.get("fingerprint") or DASH)[:16])]]
    if isinstance(corpora := used.get("corpora"), list):
        return table(["Corpus", "Weight", "Folder", "Fingerprint"], [_corpus(entry) for entry in corpora])
    if not manifest:
        return f'{_columns(rows)}<p class="about">The folder is not there now: no more is known of it here.</p>\n'
    words = dig(manifest, "tokenizer")
    rows += [["tokenizer", dig(words, "name")], ["vocabulary", dig(words, "vocab_size")]]
    changed = ""
    if used.get("fingerprint") and manifest.get("fingerprint") != used["fingerprint"]:
        changed = '<p class="warning">The folder now holds another dataset than the run read.</p>\n'
    splits = [
        [name, *(_amount(dig(split, what)) for what in ("tokens", "documents", "bytes")), _ratio(split)]
        for name, split in _items(dig(manifest, "splits"))
    ]
    sources = manifest.get("sources")
    sources = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    columns = list(dict.fromkeys(key for source in sources for key in source))
    source_rows = [[_amount(source.get(key)) for key in columns] for source in sources[:MOST_ROWS]]
    return (
        changed
        + _columns(rows)
        + (table(["Split", "Tokens", "Documents", "Bytes", "Bytes per token"], splits) if splits else "")
        + (table([key.capitalize() for key in columns], source_rows) if sources else "")
    )


def _corpus(entry: Any) -> list[str | Html]:
    """One corpus of a mixture, as its run wrote it down."""
    name, weight, path, print_ = (dig(entry, key) for key in ("name", "weight", "path", "fingerprint"))
    return [str(name or DASH), _amount(weight), str(path or DASH), _code(str(print_ or DASH)[:16])]


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _amount(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:16] + "…"  # enough of a hash to tell it from others
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else number(value)


def _ratio(split: Any) -> str:
    tokens, size = dig(split, "tokens"), dig(split, "bytes")
    return f"{size / tokens:.2f}" if isinstance(tokens, int) and isinstance(size, int) and tokens else DASH


def attempts(runs: Sequence[RunData]) -> Html:
    """Each time that a run was started, and what of its machine or observation had changed by then."""
    rows = []
    for run in runs:
        before: dict[str, Any] | None = None
        for attempt in run.attempts[-MOST_ROWS:]:
            now = dict(_flat({group: attempt.get(group) for group in ("machine", "observe")}))
            changes = [f"{name} {number(value)}" for name, value in now.items() if before and before.get(name) != value]
            command = attempt.get("command")
            versions = attempt.get("versions")
            told = ", ".join(f"{name} {number(value)}" for name, value in _items(versions)) or versions
            rows.append([
                run.name, attempt.get("attempt"), _step(attempt), moment(dig(attempt, "time", "now")),
                attempt.get("device"), attempt.get("world_size"), attempt.get("host"), told, ", ".join(changes),
                _command(command),
            ])  # fmt: skip
            before = now
    columns = [
        "Run", "Attempt", "From step", "Started", "Device", "Processes", "Host", "Versions", "Changed", "Command",
    ]  # fmt: skip
    return _by_run(columns, rows, runs)


def decisions(runs: Sequence[RunData]) -> Html:
    """What the runs chose for themselves, and why."""
    rows = [
        [
            run.name, _step(decision), decision.get("name"), decision.get("value"), decision.get("reason"),
            decision.get("attempt"), moment(dig(decision, "time", "now")),
        ]
        for run in runs
        for decision in run.decisions[-MOST_ROWS:]
    ]  # fmt: skip
    left_out = sum(max(0, len(run.decisions) - MOST_ROWS) for run in runs)
    note = f'<p class="about">{left_out:,} earlier ones are in decisions.jsonl.</p>\n' if left_out else ""
    return Html(_by_run(["Run", "From step", "Name", "Value", "Reason", "Attempt", "When"], rows, runs) + note)


def _by_run(columns: Sequence[str], rows: Sequence[Sequence[object]], runs: Sequence[RunData]) -> Html:
    """A table without the columns that hold nothing, and without the runs' names where there is one run."""
    if not rows:
        return Html("")
    used = [i for i in range(len(columns)) if any(row[i] not in (None, "", DASH) for row in rows)]
    used = used if len(runs) > 1 else used[1:]
    return table([columns[i] for i in used], [[row[i] for i in used] for row in rows], "log")


def _step(line: Json) -> str:
    step = line.get("step")
    return f"{step:,}" if isinstance(step, int) else short(step) if isinstance(step, float) else DASH


def _command(words: Any) -> Html:
    """A command line that breaks between its arguments, not at the dashes in them."""
    parts = words if isinstance(words, list) else [words] if words else []
    spans = join((Html(f"<span>{escape(part)}</span>") for part in parts), " ")
    return Html(f"<code>{spans}</code>") if parts else Html("")


def _code(words: object) -> Html:
    return Html(f"<code>{escape(words)}</code>") if words else Html("")
