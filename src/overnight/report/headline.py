"""The top of a report: what a run came to, or how several compare, and what a reader must know before trusting it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from overnight.report.charts import COLORS
from overnight.report.facts import Facts, Validation, bad_steps, dig, facts, not_numbers, tokenizer
from overnight.report.published import verdict
from overnight.report.run_data import RunData
from overnight.report.tasks import Kind, heading, kinds, main_metric, results, several_ways, with_error
from overnight.report.wording import Html, escape, join, moment, several, short, table, tiles
from overnight.words import DASH, duration

MOST_TASKS = 6  # in the headline; all are in the table of evaluations


def headline(runs: Sequence[RunData]) -> Html:
    """Name, progress and the numbers that matter."""
    if len(runs) == 1:
        run, known = runs[0], facts(runs[0])
        about = join([part for part in (_preset(run), _model(run), known.device) if part], " · ")
        below = f"{_progress(known)}{_inside(run)}{_tiles(run, known)}"
        content = f'<h1>{escape(run.name)}</h1>\n<p class="about">{about}</p>\n{below}'
    else:
        content = f"<h1>{several(len(runs), 'run')}</h1>\n{_comparison(runs)}"
    warnings = "".join(f'<p class="warning">{text}</p>\n' for text in _warnings(runs))
    return Html(f"<header>{content}{warnings}</header>\n")


def incomparable(runs: Sequence[RunData]) -> Html:
    """A warning where losses of several runs do not measure the same thing."""
    names = {run.name: tokenizer(run) for run in runs}
    if not _tokenizers_differ(runs):
        return Html("")
    told = ", ".join(f"{run}: {name or 'unknown'}" for run, name in names.items())
    text = f"These runs use different tokenizers ({told}): compare bits per byte, not the loss of a token."
    return Html(f'<p class="warning">{escape(text)}</p>\n')


def _tokenizers_differ(runs: Sequence[RunData]) -> bool:
    return len({name for run in runs if (name := tokenizer(run))}) > 1


def _warnings(runs: Sequence[RunData]) -> list[Html]:
    found = []
    for run in runs:
        for text in [not_numbers(run), bad_steps(run), _outside(run), *run.problems]:
            if text:
                found.append(escape(text if len(runs) == 1 else f"{run.name}: {text}"))
    return found


def _outside(run: RunData) -> str:
    """A sentence where the run is not where its recipe is known to be."""
    return run.reference.text if run.reference and run.reference.verdict in ("above", "below") else ""


def _preset(run: RunData) -> str:
    preset = run.config.get("preset")
    return f"preset {preset}" if isinstance(preset, str) else ""


def _model(run: RunData) -> str:
    model = dig(run.config, "recipe", "model")
    parts = []
    if layers := dig(model, "n_layer"):
        parts.append(several(layers, "layer") if isinstance(layers, int) else f"{layers} layers")
    if width := dig(model, "n_embd"):
        parts.append(f"width {width}")
    if length := dig(run.config, "recipe", "data", "sequence_length"):
        parts.append(f"context {length}")
    return ", ".join(parts)


def _progress(known: Facts) -> Html:
    if not known.steps:
        return Html("")
    share = min(100.0, 100 * known.step / known.steps)
    state = "finished" if known.finished else f"{share:.0f}%"
    seen = f", last heard of {moment(known.last_line)}" if known.last_line and not known.finished else ""
    text = escape(f"Step {known.step:,} of {known.steps:,}: {state}{seen}")
    return Html(
        f'<div class="progress{" done" if known.finished else ""}"><span style="width:{share:.1f}%"></span></div>\n'
        f'<p class="about">{text}</p>\n'
    )


def _inside(run: RunData) -> Html:
    reference = run.reference
    if reference is None or not reference.text or _outside(run):
        return Html("")
    return Html(f'<p class="{"good" if reference.verdict == "inside" else "about"}">{escape(reference.text)}</p>\n')


def _tiles(run: RunData, known: Facts) -> Html:
    final, best = known.final, known.best
    shown = []
    if final and best:
        is_best = "its best so far" if not known.finished else "its best"
        words = [_error(final), f"perplexity {short(final.perplexity)}", _bits(final), is_best if final == best else ""]
        shown.append(("Validation loss", _loss(final.loss), " · ".join(filter(None, words))))
        if final != best:
            words = [f"at step {best.step:,}", _bits(best)]
            shown.append(("Best validation loss", _loss(best.loss), " · ".join(filter(None, words))))
    shown += _task_tiles(run)
    if final and final.train_split is not None:
        gap = final.loss - final.train_split
        beside = f"validation is {abs(gap):.4f} {'higher' if gap >= 0 else 'lower'} at step {final.step:,}"
        shown.append(("Train-split loss", _loss(final.train_split), beside))
    if known.train_loss is not None:
        shown.append(("Training loss", _loss(known.train_loss), "mean of the last 2% of its lines"))
    if known.tokens is not None:
        epochs = f"{known.epochs:.3g} epochs" if known.epochs is not None else ""
        shown.append(("Tokens seen", short(known.tokens), epochs))
    if known.seconds is not None:
        tries = several(len(run.attempts), "attempt") if run.attempts else ""
        shown.append(("Training time", duration(known.seconds), tries))
    if known.tokens_per_second is not None:
        shown.append(("Tokens per second", short(known.tokens_per_second), "median"))
    if not shown:
        return Html('<p class="empty">Nothing measured yet.</p>')
    return tiles(shown)


def _task_tiles(run: RunData) -> list[tuple[str, str, str]]:
    """The last result of each task, and how it stands beside a published one."""
    shown = []
    every = kinds([run])
    for kind in every[:MOST_TASKS]:
        result = results(run, kind)[-1]
        name = main_metric(result)
        if name and math.isfinite(result.metrics[name]):
            value, _, error = with_error(result, name).partition(" ")
            way = kind.way if several_ways(every, kind) else ""
            words = [error, name, way, f"step {result.step:,.0f}", verdict(result)]
            shown.append((kind.title, value, " · ".join(filter(None, words))))
    return shown


def _error(result: Validation) -> str:
    return f"± {result.error:.4f}" if result.error is not None else ""


def _bits(result: Validation) -> str:
    return f"{result.bits_per_byte:.3f} bits per byte" if result.bits_per_byte is not None else ""


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else short(value)


def _comparison(runs: Sequence[RunData]) -> Html:
    known = [facts(run) for run in runs]
    columns = ["Run", "Validation loss", "Bits per byte", "Best", "at step", "Steps", "Tokens", "Epochs", "Time",
               "Tokens/s", "Preset", "Device"]  # fmt: skip
    lowest = None if _tokenizers_differ(runs) else _least([one.final.loss if one.final else None for one in known])
    fewest = _least([one.final.bits_per_byte if one.final else None for one in known])
    scored = kinds(runs)[:MOST_TASKS]
    columns[3:3] = [heading(runs, kind) for kind in scored]
    rows = []
    for i, (run, one) in enumerate(zip(runs, known, strict=True)):
        swatch = Html(f'<span class="swatch c{i % COLORS}"></span>{escape(run.name)}')
        final, best = one.final, one.best
        bits = final.bits_per_byte if final else None
        rows.append([
            swatch,
            _strong(_loss(final.loss), final.loss == lowest) if final else DASH,
            _strong(f"{bits:.3f}", bits == fewest) if bits is not None else DASH,
            *(_result(run, kind) for kind in scored),
            _loss(best.loss) if best else DASH,
            f"{best.step:,}" if best else DASH,
            f"{one.step:,}" if one.finished or not one.steps else f"{one.step:,} of {one.steps:,}",
            short(one.tokens) if one.tokens is not None else DASH,
            f"{one.epochs:.3g}" if one.epochs is not None else DASH,
            duration(one.seconds) if one.seconds is not None else DASH,
            short(one.tokens_per_second) if one.tokens_per_second is not None else DASH,
            run.config.get("preset"),
            one.device,
        ])  # fmt: skip
    used = [i for i in range(len(columns)) if any(row[i] not in (None, "", DASH) for row in rows)]
    return table([columns[i] for i in used], [[row[i] for i in used] for row in rows], "comparison")


def _result(run: RunData, kind: Kind) -> str:
    found = results(run, kind)
    name = main_metric(found[-1]) if found else ""
    return with_error(found[-1], name) if name else DASH


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _strong(text: str, strong: bool) -> Html:
    return Html(f"<strong>{escape(text)}</strong>") if strong else escape(text)
