"""The result of `overnight bench`, as lines."""

from __future__ import annotations

from overnight.bench.bench import Result
from overnight.data.sizes import scaled, size


def lines(result: Result) -> list[str]:
    """What is measured comes first, then where time and memory went."""
    total, speed, choices = sum(result.parameters.values()), result.tokens_per_second, result.choices
    settled = [f"{name.replace('_', '-')} {_word(value)}" for name, value in choices.items() if value is not None]
    found = [
        f"{result.preset} on {result.device}",
        f"model        {total:,} parameters, {scaled(sum(result.flops_per_token.values()), 'FLOP')} for each token",
        f"choices      {', '.join(settled)}",
        f"step         {result.tokens_per_step:,} tokens in {result.micro_batches} "
        f"micro-batch{'es' * (result.micro_batches > 1)}, "
        f"{result.seconds.median:.4g} s",
        f"speed        {speed.median:,.0f} tokens/s (the middle half of {speed.count} steps: {speed.low:,.0f} to "
        f"{speed.high:,.0f})",
    ]
    if result.tokens_per_step != result.run_tokens_per_step:
        found.append(
            f"             {result.run_tokens_per_second:,.0f} tokens/s in a run, whose steps have "
            f"{result.run_tokens_per_step:,} tokens and one update: reckoned from the parts"
        )
    return [*found, *_utilisation(result), *_memory(result), *_parts(result)]


def _utilisation(result: Result) -> list[str]:
    peak, precision = result.peaks["matmul"], result.choices["precision"]
    found = [
        f"utilisation  {result.utilisation:.1%} of {scaled(peak, 'FLOP/s')}, which {precision} matrix products were "
        "measured to reach here",
        f"             memory is copied at {size(result.peaks['copy'])}/s",
    ]
    if result.datasheet:
        share = result.flops / result.datasheet
        found.insert(1, f"             {share:.1%} of {scaled(result.datasheet, 'FLOP/s')}, the datasheet's: the MFU")
    return found


def _memory(result: Result) -> list[str]:
    found = [] if result.memory is None else [f"{size(result.memory)} at most"]
    if result.predicted is not None:
        share = f" ({result.predicted.total / result.memory:.0%})" if result.memory else ""
        found.append(f"predicted {size(result.predicted.total)}{share}")
    else:
        found.append(f"no prediction ({result.unpredicted})")
    lines = [f"memory       {', '.join(found)}"]
    if result.predicted is not None:
        parts = result.predicted.parts.items()
        lines.append("             " + ", ".join(f"{name} {size(count)}" for name, count in parts if count))
    if result.process is not None:
        lines.append(f"             the process had {size(result.process)} at most, with Python and libraries")
    return lines


def _parts(result: Result) -> list[str]:
    whole = sum(result.parts.values())
    shares = [f"{name} {seconds / whole:.1%}" for name, seconds in result.parts.items() if seconds]
    return [f"parts        {', '.join(shares)}"]


def _word(value: object) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
