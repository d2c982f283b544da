"""What a run will take, reckoned from a short trial of it; and the sizes that are best for so many operations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from overnight.config import Config
from overnight.data.sizes import scaled, short, size
from overnight.deadline import made
from overnight.words import duration

FORWARD = 3.0  # a training step computes so many times what an evaluation computes for the same tokens
STATE = 12  # bytes a parameter in a checkpoint: float32 weights and two moments
# Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section D.3, equation 10: the loss
# E + A / N^ALPHA + B / D^BETA after D tokens with N parameters; E is no part of what is best
A, B, ALPHA, BETA = 406.4, 410.7, 0.34, 0.28


@dataclass(frozen=True)
class Plan:
    """What a run of `steps` takes."""

    steps: int
    tokens: int
    epochs: float | None
    """None: nobody knows the dataset."""
    training: float
    """Seconds of the steps."""
    evaluations: float
    """Seconds of all evaluations of the loss, reckoned from the speed of training."""
    disk: int
    """Bytes of its checkpoints, at most."""
    money: float | None

    @property
    def seconds(self) -> float:
        return self.training + self.evaluations


def planned(
    config: Config, speed: float, parameters: int, train: int | None, val: int | None, begun: float, price: float | None
) -> Plan:
    """The plan for a resolved configuration, where so many tokens are trained in a second, with so many tokens of each
    split (None: unknown). With hours, or a moment, it has as many steps as fit from `begun` on."""
    per_step, deadline = config.recipe.train.tokens_per_step, made(config.machine, begun)
    evaluation = _evaluated(config, train, val) / (FORWARD * speed)
    every = config.observe.eval.every
    steps = config.recipe.train.steps
    if deadline is not None:
        left = deadline.whole - 2 * evaluation
        steps = max(1, int(left / (per_step / speed + (evaluation / every if every else 0.0))))
    evaluations = evaluation * (1 + math.ceil(steps / every)) if every else 0.0
    rule = config.observe.checkpoint
    # the best, those at multiples, and one that is written before an older one goes
    kept = rule.keep_last + rule.keep_best + 1 + (steps // rule.keep_every if rule.keep_every else 0)
    found = Plan(
        steps=steps,
        tokens=steps * per_step,
        epochs=steps * per_step / train if train else None,
        training=steps * per_step / speed,
        evaluations=evaluations,
        disk=kept * STATE * parameters,
        money=None,
    )
    return dataclasses.replace(found, money=None if price is None else price * found.seconds / 3600)


def _evaluated(config: Config, train: int | None, val: int | None) -> int:
    """Tokens of an evaluation."""
    asked = config.observe.eval
    whole = val if val is not None else asked.tokens
    return min(asked.tokens or whole, whole) + min(asked.train_tokens, train or asked.train_tokens)


def compute_optimal(flops: float) -> tuple[float, float]:
    """Parameters and tokens with which 6 N D operations reach the lowest loss, by Hoffmann et al. 2022, equation 4."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (flops / 6) ** (BETA / (ALPHA + BETA)), (flops / 6) ** (ALPHA / (ALPHA + BETA)) / g


def lines(config: Config, plan: Plan, trial: dict[str, Any], cached: bool) -> list[str]:
    """A plan as text; `trial` is the JSON of a bench's result."""
    memory, predicted = trial["memory"], trial["predicted"]
    told = [f"{size(memory)} at most"] if memory else []
    told += [f"{size(sum(predicted['parts'].values()))} predicted"] if predicted else []
    epochs = "" if plan.epochs is None else f", {plan.epochs:.2f} epochs"
    found = [
        f"{config.preset} on {trial['device']}",
        f"model     {sum(trial['parameters'].values()):,} parameters",
        f"speed     {trial['run_tokens_per_second']:,.0f} tokens/s by {'an earlier' if cached else 'a short'} trial",
        f"length    {plan.steps:,} steps, {short(plan.tokens)} tokens{epochs}",
        f"time      {duration(plan.seconds)}: {duration(plan.training)} of training, {duration(plan.evaluations)} of "
        "evaluations",
        f"memory    {', '.join(told) or 'unknown'}, on each device",
        f"disk      {size(plan.disk)} for checkpoints",
    ]
    if plan.money is not None:
        found.append(f"money     {plan.money:,.2f}")
    return [*found, "loss      no estimate: there is no fit for this model and text"]


def table(config: Config, parameters: dict[str, int], flops: dict[str, int], memory: dict[str, int]) -> list[str]:
    """What a model has and takes, without trials: `memory` is that of one micro-batch of one sequence."""
    total, each, train = sum(parameters.values()), sum(flops.values()), config.recipe.train
    run = each * train.steps * train.tokens_per_step
    best, tokens = compute_optimal(run)
    return [
        f"{config.preset}: {total:,} parameters",
        *(f"  {name:<12}{count:>16,}  {count / total:6.1%}" for name, count in parameters.items() if count),
        f"operations for each token: {scaled(each, 'FLOP')}",
        *(f"  {name:<12}{scaled(count, 'FLOP'):>16}  {count / each:6.1%}" for name, count in flops.items()),
        f"operations of {train.steps:,} steps of {train.tokens_per_step:,} tokens: {run:.3g} FLOP",
        f"memory of a step in float32, one sequence at once: {size(sum(memory.values()))}",
        *(f"  {name:<12}{size(count):>16}" for name, count in memory.items() if count),
        f"compute-optimal for {run:.3g} FLOP: {short(best)} parameters, {short(tokens)} tokens (Hoffmann et al. 2022, "
        "equations 4 and 10)",
    ]
