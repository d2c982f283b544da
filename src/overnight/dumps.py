"""What is known of a bad step, in a folder of its own: RUN/dumps/step_NNNNNNNN."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.checkpoint import folder_name
from overnight.distributed import whole
from overnight.errors import UserError
from overnight.files import folder_atomic, write_atomic, write_json
from overnight.guard import FOLDER, Bad
from overnight.loader import Numbers
from overnight.machine.device import autocast
from overnight.origins import Origins
from overnight.training import DeviceFull, Interrupted, Training, gradient, memory_watched, micro_batches

FORMAT, VERSION = "overnight-dump", 1
SEQUENCES, CHARACTERS = 64, 8_000  # written out: so many sequences, the worst first, and so much text of each


class Dumps:
    """Writes a dump of each bad step. The step is computed once more for it, so that a batch that is to blame can be
    told from a device that is."""

    def __init__(self, origins: Origins) -> None:
        self.origins = origins

    def __call__(self, training: Training, bad: Bad) -> None:
        """Every rank computes, the one that writes writes; where the disk refuses, that is said."""
        numbers = training.numbers(bad.step - 1)
        losses = _losses(training, numbers)
        again = _again(training, bad.step - 1)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "step": bad.step,
            "batch": bad.batch,
            "reason": bad.reason,
            "loss": bad.loss,
            "grad_norm": bad.grad_norm,
            "lr": training.learning_rate(bad.step - 1),
            "weights_of_step": training.step,
            **again,
        }
        training.optimizer.zero_grad(set_to_none=True)
        if not training.folder.writes:
            return
        try:
            self._write(training, content, numbers, losses)
        except OSError as error:
            training.console.line(f"no dump of step {bad.step}: {error}")

    def _write(self, training: Training, content: dict[str, Any], numbers: Numbers, losses: list[float] | None) -> None:
        order = range(len(numbers)) if losses is None else sorted(range(len(numbers)), key=lambda i: _rank(losses[i]))
        chosen = list(order)[:SEQUENCES]
        try:
            sequences = self.origins.of(numbers[chosen])
        except UserError as error:  # the dataset's folder may be gone while its files are open
            sequences = [{"number": int(numbers[i])} for i in chosen]
            content["documents_missing"] = str(error)
        for index, sequence in zip(chosen, sequences, strict=True):
            sequence["loss"] = None if losses is None else losses[index]
        content |= {"sequences_of_batch": len(numbers), "first_number": int(numbers[0]), "sequences": sequences}
        inputs, _ = training.dataset.tokens(numbers[chosen])
        decode = training.tokenizer.decode
        texts = [
            f"--- sequence {sequence['number']}, loss {sequence['loss']}\n{decode(row)[:CHARACTERS]}\n"
            for sequence, row in zip(sequences, inputs, strict=True)
        ]
        with folder_atomic(place(training.folder.path, int(content["step"]))) as aside:
            write_json(aside / "dump.json", content)
            write_atomic(aside / "batch.txt", "".join(texts).encode(errors="replace"))


def place(run: Path, step: int) -> Path:
    """A folder that is not there yet; a step that was bad before, with another batch, has its own."""
    names = (run / FOLDER / (folder_name(step) + (f"_{number}" if number > 1 else "")) for number in count(1))
    return next(path for path in names if not path.exists())


def found(run: Path, step: int) -> list[Path]:
    """The dumps of a step, in the order in which they were written."""
    paths = [*(run / FOLDER).glob(folder_name(step)), *(run / FOLDER).glob(f"{folder_name(step)}_*")]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _rank(loss: float) -> float:
    """For sorting: what is no number first, then from the highest loss down."""
    return -loss if loss == loss else -float("inf")


def _losses(training: Training, numbers: Numbers) -> list[float] | None:
    """The mean loss of each sequence; None where memory is full."""
    micro_batch = int(training.folder.decided("micro_batch", training.step))
    world, rows = training.world, []
    training.model.eval()
    full = False
    try:
        with training.exchange.evaluating(), torch.no_grad():
            for inputs, targets in micro_batches(training.dataset, numbers, world, micro_batch, training.device):
                with memory_watched(), autocast(training.device, training.precision):
                    rows += training.forward(inputs, targets, per_token=True).float().mean(1).tolist()
    except DeviceFull:
        full = True
    if world.any(full):
        return None
    return world.interleaved(rows[: len(world.mine(numbers.tolist()))])


def _again(training: Training, index: int) -> dict[str, Any]:
    """The loss and norms of the step when it is computed once more, with the weights as they are now."""
    micro_batch = int(training.folder.decided("micro_batch", training.step))
    try:
        loss: float | None = float(gradient(training, index, micro_batch))
    except (DeviceFull, Interrupted):
        loss = None
    norms: dict[str, dict[str, float]] = {}
    for name, parameter in training.model.named_parameters():
        state = {key: value for key, value in training.optimizer.state.get(parameter, {}).items() if value.dim()}
        tensors = {"weight": parameter.detach(), "gradient": parameter.grad if loss is not None else None, **state}
        norms[name] = {key: _norm(value) for key, value in tensors.items() if value is not None}
    total = sum(own.get("gradient", 0.0) ** 2 for own in norms.values()) ** 0.5
    return {"again": {"loss": loss, "grad_norm": None if loss is None else total}, "norms": norms}


def _norm(tensor: Tensor) -> float:
    return float(whole(torch.linalg.vector_norm(tensor.float())))
