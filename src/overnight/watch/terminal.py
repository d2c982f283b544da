"""Following runs in the terminal: a table, a curve, the end of the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overnight.report.facts import facts
from overnight.report.run_data import RunData
from overnight.report.wording import UNPRINTABLE
from overnight.watch.page import speed
from overnight.watch.watcher import Look, Seen, Watcher
from overnight.words import duration

PACE = 2.0  # seconds between looks
NAME = 12  # letters of a run's name that are shown, however narrow the terminal
WIDEST = 1000  # columns to measure a table in
GIVEN_UP = (
    "Loss so far",
    "",
    "Best",
    "Heard",
    "Tokens/s",
    "Loss",
    "Left",
    "Val",
)  # where the terminal is narrow, in this order
Cells = Mapping[str, str | Text | ProgressBar]
BLOCKS = " ▁▂▃▄▅▆▇█"
STYLES = {"training": "bold blue", "starting": "blue", "finished": "bold green", "killed": "bold red",
          "stopping": "yellow", "silent": "yellow"}  # fmt: skip


def follow(watcher: Watcher) -> None:
    """Shows the runs until Ctrl-C; where there is no terminal, once."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
        console.print(screen(watcher.look(), console))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(watcher.look(), console), refresh=True)
            time.sleep(PACE)


def screen(look: Look, console: Console) -> Group:
    """The table of all runs; of a single one also its curve, its last sample and the end of its log."""
    parts: list[Table | Panel | Text] = [_table(look, console)]
    for seen in look.runs:
        if seen.state.text and not seen.state.live:
            parts.append(Text(plain(f"{seen.path}: {seen.state.text}"), style="dim"))
    if len(look.runs) == 1 and look.runs[0].run:
        parts += _details(look.runs[0], look.runs[0].run, console.width)
    if look.left_out:
        parts.append(Text(f"{look.left_out} older runs left out", style="dim"))
    return Group(*parts)


def _table(look: Look, console: Console) -> Table:
    """A line a run, with as many columns as the terminal has room for."""
    now = time.time()
    rows = [_cells(seen, now) for seen in look.runs]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = _filled(names, rows, console.width)
    for least in GIVEN_UP:
        if least not in names:
            continue
        if console.measure(table, options=console.options.update(width=WIDEST)).maximum <= console.width:
            break
        names.remove(least)
        table = _filled(names, rows, console.width)
    return table


def _filled(names: Sequence[str], rows: Sequence[Cells], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        longest = max(NAME, width // 3) if name == "Run" else None
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=longest)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _cells(seen: Seen, now: float) -> Cells:
    """What there is to say of a run, by column."""
    run, state = seen.run, seen.state
    known = facts(run) if run else None
    loss, rate = ([*speed(run), "", ""] if run else ["", ""])[:2]
    steps = known.steps if known else None
    return {
        "Run": plain(run.name if run else str(seen.path)),
        "State": Text(state.name, style=STYLES.get(state.name, "")),
        "": ProgressBar(100, 100 * min(1.0, known.step / steps), width=12) if known and steps else "",
        "Step": (f"{known.step:,} of {steps:,}" if steps else f"{known.step:,}") if known else "",
        "Loss": loss.removeprefix("loss "),
        "Tokens/s": rate.removesuffix(" tokens/s"),
        "Val": f"{known.final.loss:.4f}" if known and known.final else "",
        "Best": f"{known.best.loss:.4f}" if known and known.best else "",
        "Left": duration(max(0.0, state.done - now)) if state.done else "",
        "Heard": duration(max(0.0, now - state.heard)) + " ago" if state.heard else "",
        "Loss so far": bars(_losses(run), 20)[0] if run else "",
    }


def _details(seen: Seen, run: RunData, width: int) -> list[Table | Panel | Text]:
    losses = _losses(run)
    parts: list[Table | Panel | Text] = []
    if len(losses):
        good = losses[np.isfinite(losses)]
        title = f"training loss, from {good[0]:.4f} to {good[-1]:.4f}, lowest {good.min():.4f}"
        parts.append(Panel(Text("\n".join(bars(losses, width - 4, 8)), style="blue"), title=title, title_align="left"))
    if run.samples and isinstance(texts := run.samples[-1].get("texts"), list) and texts:
        text = Text(plain(str(texts[0]))[:600])
        parts.append(Panel(text, title=f"sample at step {run.samples[-1]['step']}", title_align="left"))
    if seen.log:
        lines = [plain(line)[: width - 4] for line in seen.log.splitlines()[-8:]]
        parts.append(Panel(Text("\n".join(lines), style="dim"), title="log", title_align="left"))
    return parts


def _losses(run: RunData | None) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    series = run.series.get("train.loss") if run else None
    return series.value if series and np.isfinite(series.value).any() else np.empty(0)


def bars(values: np.ndarray[tuple[int], np.dtype[np.float64]], width: int, height: int = 1) -> list[str]:
    """Means over `width` equal stretches of the values as rows of blocks, the top row first."""
    width = min(width, len(values))
    if width < 1:
        return [""] * height
    stretches = np.array_split(values, width)
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in stretches])
    low, high = np.nanmin(means), np.nanmax(means)
    share = (means - low) / (high - low) if high > low else np.full(width, 0.5)
    eighths = np.nan_to_num(np.round(1 + share * (8 * height - 1)), nan=0).astype(int)
    return ["".join(BLOCKS[min(8, max(0, n - 8 * row))] for n in eighths) for row in reversed(range(height))]


def plain(text: str) -> str:
    """Text of a run without what moves a terminal's cursor."""
    return UNPRINTABLE.sub("\ufffd", text)
