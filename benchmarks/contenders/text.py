"""What was measured, as tables and as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import median
from typing import Any

from contenders.learning import reached


def page(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    where = f"{found['device']}; {versions}; load {found['load']:.1f} at the start; {found['date']}"
    lines = [f"# Beside others\n\n{where}.\n\n`python benchmarks/against_peers.py {found['command']}`\n"]
    lines += [_throughput(own) for own in found["throughput"]]
    lines += [_learning(found["learning"])] if found["learning"] else []
    return "\n".join(lines)


def _throughput(found: dict[str, Any]) -> str:
    task, peak = found["task"], median(found["matmul"] or [0.0])
    flops = task["flops_per_token"]
    lines = [
        f"## Tokens a second, T={found['sequence_length']}\n",
        f"{task['n_layer']} layers of {task['n_embd']}, {task['n_head']} heads. Each in turns with ours, two processes "
        f"at a time; medians of the turns, in brackets the least and the most. {peak / 1e9:,.0f} GFLOP/s of bf16 "
        f"matrix products measured in between; utilisation is {flops / 1e9:.2f} GFLOP a token (a GPT-2 of this "
        "size) in those. Memory is the most that the process had, on CUDA that torch gave out.\n",
        "| | setting | parameters | sequences | tokens/s | utilisation | memory | ours is faster |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        if "failed" in row:
            lines.append(_failed(row, 8))
            continue
        ratios = row.get("ratios", [])
        faster = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""
        used = f"{row['median'] * flops / peak:.0%}" if peak else ""
        memory = f"{row['memory'] / 2**30:.1f} GiB" if row["memory"] else ""
        lines.append(
            f"| {row['name']} | {_about(row)} | {row['parameters'] / 1e6:,.1f}M | {_batch(row, task)} | "
            f"{row['median']:,.0f} | {used} | {memory} | {faster} |"
        )
    return "\n".join(lines) + "\n"


def _learning(found: dict[str, Any]) -> str:
    task = found["task"]
    done = [row for row in found["rows"] if "failed" not in row]
    bar = next((row for row in done if row["name"].startswith("nanoGPT")), done[0] if done else None)
    lines = [
        "## Loss against time\n",
        f"{task['n_layer']} layers of {task['n_embd']}, {task['n_head']} heads, T={task['sequence_length']}, "
        f"{task['micro_batch'] * task['accumulation'] * task['sequence_length']:,} tokens a step; "
        f"{found['seconds']:.0f} s of training each, without the first step, in which most compile; AdamW's rate "
        f"{task['lr']:g}. The loss is that of the same {found['measured']:,} validation tokens for all.\n",
        f"| | setting | parameters | tokens | seconds | loss | seconds to {bar['name'] if bar else 'the same'}'s loss "
        "| tokens to it |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        if "failed" in row or bar is None:
            lines.append(_failed(row, 8))
            continue
        last, goal = row["points"][-1], bar["points"][-1]
        shares = []
        for along in ("seconds", "tokens"):
            there = reached(row["points"], goal["loss"], along)
            shares.append("not reached" if there is None else f"{there:,.0f} ({there / goal[along]:.0%})")
        lines.append(
            f"| {row['name']} | {_about(row)} | {row['parameters'] / 1e6:,.1f}M | {last['tokens']:,.0f} | "
            f"{last['seconds']:.0f} | {last['loss']:.4f} | {shares[0]} | {shares[1]} |"
        )
    return "\n".join(lines) + "\n"


def _about(row: dict[str, Any]) -> str:
    decided = row.get("decided", {})
    chosen = ", ".join(f"{name} {decided[name]}" for name in ("precision", "compile") if name in decided)
    return f"{row['about']} ({chosen})" if chosen else str(row["about"])


def _batch(row: dict[str, Any], task: dict[str, Any]) -> str:
    size = row.get("decided", {}).get("micro_batch", row["micro_batch"])
    return f"{size} x {row['tokens_per_step'] // task['sequence_length'] // size}"


def _failed(row: dict[str, Any], columns: int) -> str:
    reason = (row["failed"].splitlines() or ["without a word"])[-1][:200].replace("|", "/")
    return f"| {row['name']} | {row['about']} | failed: {reason} |" + " |" * (columns - 3)


def draw(found: dict[str, Any], path: Path) -> None:
    """Loss over seconds and over tokens, where matplotlib is installed."""
    rows = [row for row in found["rows"] if "points" in row]
    if importlib.util.find_spec("matplotlib") is None or not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    for axes, along in zip(figure.subplots(1, 2, sharey=True), ("seconds", "tokens"), strict=True):
        for row in rows:
            axes.plot(*([point[of] for point in row["points"]] for of in (along, "loss")), label=row["name"])
        axes.set_xlabel(along)
        axes.grid(color="#e3e3de", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    figure.supylabel("validation loss")
    figure.savefig(path)
