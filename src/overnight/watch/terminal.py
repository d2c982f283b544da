"""Following runs in the terminal: a table, a curve, the end of the log."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overnight.report.facts import facts
from overnight.report.run_data import RunData
from overnight.report.wording import UNPRINTABLE, duration
from overnight.watch.page import speed
from overnight.watch.watcher import Look, Seen, Watcher

PACE = 2.0  # seconds between looks
BLOCKS = " ▁▂▃▄▅▆▇█"
STYLES = {"training": "bold blue", "starting": "blue", "finished": "bold green", "killed": "bold red",
          "stopping": "yellow", "silent": "yellow"}  # fmt: skip


def follow(watcher: Watcher) -> None:
    """Shows the runs until Ctrl-C; where there is no terminal, once."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
        console.print(screen(watcher.look(), console.width))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(watcher.look(), console.width), refresh=True)
            time.sleep(PACE)


def screen(look: Look, width: int) -> Group:
    """The table of all runs; of a single one also its curve, its last sample and the end of its log."""
    parts: list[Table | Panel | Text] = [_table(look)]
    for seen in look.runs:
        if seen.state.text and not seen.state.live:
            parts.append(Text(plain(f"{seen.path}: {seen.state.text}"), style="dim"))
    if len(look.runs) == 1 and look.runs[0].run:
        parts += _details(look.runs[0], look.runs[0].run, width)
    if look.left_out:
        parts.append(Text(f"{look.left_out} older runs left out", style="dim"))
    return Group(*parts)


def _table(look: Look) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("Run", "State", "", "Step", "Loss", "Speed", "Val", "Best", "Left", "Heard", "Loss so far"):
        last = name == "Loss so far"
        table.add_column(name, overflow="crop" if last else "fold", no_wrap=last)
    now = time.time()
    for seen in look.runs:
        known = facts(seen.run) if seen.run else None
        state = seen.state
        loss, rate = ([*speed(seen.run), "", ""] if seen.run else ["", ""])[:2]
        table.add_row(
            plain(seen.run.name if seen.run else str(seen.path)),
            Text(state.name, style=STYLES.get(state.name, "")),
            ProgressBar(100, 100 * min(1.0, known.step / known.steps), width=12) if known and known.steps else "",
            (f"{known.step:,} of {known.steps:,}" if known.steps else f"{known.step:,}") if known else "",
            loss.removeprefix("loss "),
            rate,
            f"{known.final.loss:.4f}" if known and known.final else "",
            f"{known.best.loss:.4f}" if known and known.best else "",
            duration(max(0.0, state.done - now)) if state.done else "",
            duration(max(0.0, now - state.heard)) + " ago" if state.heard else "",
            bars(_losses(seen.run), 20)[0] if seen.run else "",
        )
    return table


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
