"""The page that follows runs: its frame, and what changes in it as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

import numpy as np

from overnight.report.charts import COLORS
from overnight.report.document import asset, document
from overnight.report.facts import facts
from overnight.report.fragments import Fragments, of_runs
from overnight.report.page import SCRIPTS
from overnight.report.run_data import RunData
from overnight.report.wording import Html, escape, join, several, short
from overnight.watch.state import State
from overnight.watch.watcher import Look, Seen

NOTHING = Fragments("waiting", Html(""), Html(""), [], '{"axis":"step","runs":[],"charts":[]}')
BODY = Html(
    '<div id="strip"></div>\n<p class="warning" id="lost" hidden></p>\n<noscript><p class="warning">This page follows '
    "the runs with a script, which does not run here. <code>overnight report RUN</code> writes one that needs none."
    '</p></noscript>\n<div id="headline"></div>\n<nav id="links"></nav>\n<div id="notes"></div>\n'
    '<div id="parts"></div>\n'
)


def page(look: Look) -> str:
    """The whole page as text, with the runs as they are now."""
    script = "".join(asset(name) for name in SCRIPTS) + _own("watch.js")
    return document("overnight watch", BODY, _own("watch.css"), script, changing(look), connect="'self'")


def changing(look: Look) -> str:
    """What changes in the page, as JSON that can stand in a script element."""
    runs = [seen.run for seen in look.runs if seen.run]
    found = of_runs(runs, pictures=False) if runs else NOTHING
    sections = list(found.sections)
    logs = _logs([seen for seen in look.runs if seen.log])
    if logs:
        names = [name for name, _, _ in sections]
        at = names.index("configuration") if "configuration" in names else len(names)
        sections.insert(at, ("log", "Log", logs))
    content = {
        "tag": look.tag,
        "title": _title(look, found.title),
        "strip": _strip(look),
        "headline": found.headline,
        "notes": found.notes,
        "sections": sections,
        "data": json.loads(found.data),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _own(name: str) -> str:
    return (resources.files("overnight.watch") / name).read_text(encoding="utf-8")


def _title(look: Look, names: str) -> str:
    """The page's title, readable in a tab: how far it is."""
    if len(look.runs) == 1 and look.runs[0].run:
        seen, known = look.runs[0], facts(look.runs[0].run)
        share = f"{100 * min(1.0, known.step / known.steps):.0f}% " if known.steps and seen.state.live else ""
        return f"{share or seen.state.name + ' '}{names}"
    live = sum(seen.state.live for seen in look.runs)
    return f"{live} training · {names}"


def _strip(look: Look) -> Html:
    """A line for each run: its state, how far it is, when it will be done."""
    rows = join(_row(seen, i, len(look.runs)) for i, seen in enumerate(look.runs))
    more = f'<p class="about">{several(look.left_out, "older run")} left out.</p>\n' if look.left_out else ""
    return Html(f'<div class="strip">{rows}</div>\n{more}')


def _row(seen: Seen, index: int, count: int) -> Html:
    state = seen.state
    name = seen.run.name if seen.run else str(seen.path)
    swatch = Html(f'<span class="swatch c{index % COLORS}"></span>') if count > 1 and seen.run else ""
    title = Html(f'<span class="name">{swatch}{escape(name)}</span>') if count > 1 or not seen.run else ""
    badge = Html(f'<span class="badge {state.name}">{state.name}</span>')
    facts_of = [escape(state.text)] if state.text and not (count > 1 and state.live) else []
    if seen.run:
        facts_of = [*_now(seen.run, state, count), *facts_of]
    if state.heard is not None:
        facts_of.append(Html(f'heard <span data-at="{state.heard:.0f}">a while</span> ago'))
    return Html(f'<div class="run">{title}{badge}<span class="facts">{join(facts_of, " · ")}</span></div>\n')


def _now(run: RunData, state: State, count: int) -> list[Html]:
    """The numbers of this moment."""
    known, found = facts(run), []
    if count > 1 and known.steps:
        share = 100 * min(1.0, known.step / known.steps)
        found.append(Html(f'<progress max="100" value="{share:.1f}"></progress> {share:.0f}%'))
        found.append(escape(f"step {known.step:,} of {known.steps:,}"))
    if state.done is not None:
        found.append(
            Html(f'<b data-left="{state.done:.0f}"></b> left, done <span data-clock="{state.done:.0f}"></span>')
        )
    if state.live:
        found += [escape(text) for text in speed(run)]
    return found


def speed(run: RunData) -> list[str]:
    """Tokens per second lately, and the last training loss."""
    found = []
    for name, words in (("train.loss", "loss {:.4f}"), ("train.tokens_per_second", "{} tokens/s")):
        values = run.series[name].value if name in run.series else np.empty(0)
        if len(values) and np.isfinite(values[-1]):
            recent = values[-10:]
            value = float(np.median(recent[np.isfinite(recent)]))
            found.append(words.format(short(value) if "tokens/s" in words else float(values[-1])))
    return found


def _logs(seen: Sequence[Seen]) -> Html:
    """The end of each run's log."""
    boxes = []
    for one in seen:
        name = f"<h3>{escape(one.run.name if one.run else str(one.path))}</h3>" if len(seen) > 1 else ""
        boxes.append(f'{name}<pre class="log" tabindex="0">{escape(one.log)}</pre>')
    return Html("".join(boxes))
