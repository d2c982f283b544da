"""The whole way in one go, without a network: text, tokens, a trained model, samples and a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from overnight import api, checkpoint, session
from overnight.config import Config
from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.evals.compression import bits_per_byte
from overnight.evals.loss import Loss, mean_loss
from overnight.files import write_json
from overnight.hooks import EVAL_TOKENS
from overnight.machine.device import autocast
from overnight.runs import RunFolder

TOKENIZER = "bpe:4096"
VAL_FRACTION = 0.12  # of the files, by hash: with any Python's library about a tenth of the text
COMPRESSING = 3.0  # seconds that both compressors and a second report take, about
LEAST_SHARE = 0.05  # of the text that is held out
EXPLANATION = (
    "Both compressors and the model saw exactly the same {size:,} bytes: {documents} held-out files of the standard "
    "library, {share:.1%} of its text, chosen by a hash of each file's text and put end to end in that order. The "
    "model learned from the other files only; gzip and xz start from nothing, and need no model of {megabytes:.0f} MB "
    "to read their output."
)


def run(config: Config, out: Path, say: Callable[[str], None], begun: float | None = None) -> Path:
    """Prepares `out`/data from the standard library, trains `out`/run on it, and sets the model beside gzip and xz.

    Continues what an interrupted demo has left; hours that it has count from `begun`, or from the training. Returns the
    path of the report.
    """
    data, run_path = out / "data", out / "run"
    manifest = prepare(open_source("stdlib"), data, PrepareOptions(tokenizer=TOKENIZER, val_fraction=VAL_FRACTION))
    split = manifest.splits["train"]
    say(
        f"prepared Python's own standard library: {split['documents']} files, {split['bytes'] / 1e6:.1f} MB, "
        f"{split['tokens']:,} tokens of {TOKENIZER} to learn from"
    )
    config = replace(config, machine=replace(config.machine, device="cpu"))
    evaluation = config.observe.eval.tokens + config.observe.eval.train_tokens
    after = COMPRESSING, manifest.splits["val"]["tokens"] / max(1, evaluation)
    api.train(config, data, run_path, command=["overnight", "demo"], begun=begun, after=after)
    return compare_with_compressors(run_path, manifest, say)


def compare_with_compressors(run_path: Path, manifest: Manifest, say: Callable[[str], None]) -> Path:
    """Measures bits per byte of model, gzip and xz on the held-out files; writes them to notes.json and the report."""
    from overnight.report import write_report

    tokenizer, stream = load_tokenizer(manifest), session.open_stream(manifest, "val")
    text = tokenizer.decode_bytes(stream.read(0, stream.length))
    model = held_out_loss(run_path, manifest)
    sizes = {**bits_per_byte(text), "this model": model.bits_per_byte}
    rows = [[name, f"{bits:.3f}", f"{round(bits * len(text) / 8):,}"] for name, bits in sizes.items()]
    share = len(text) / manifest.totals["bytes"]
    if share < LEAST_SHARE:
        raise AssertionError(f"only {share:.1%} of the text is held out")
    weights = (checkpoint.find(run_path / "checkpoints", "last") / "model.safetensors").stat().st_size
    explanation = EXPLANATION.format(
        size=len(text), documents=manifest.splits["val"]["documents"], share=share, megabytes=weights / 1e6
    )
    columns = ["", "bits per byte", "bytes"]
    section = {
        "title": "Held-out text: this model beside gzip and xz",
        "text": explanation,
        "table": {"columns": columns, "rows": rows},
    }
    write_json(run_path / "notes.json", {"sections": [section]})
    say(f"\nbits per byte of {len(text):,} held-out bytes (less is better):")
    for name, bits, _ in rows:
        say(f"  {name:<12}{bits}")
    return write_report([run_path], run_path / "report.html")


def held_out_loss(run_path: Path, manifest: Manifest) -> Loss:
    """The last checkpoint's loss on the whole validation split, in the precision it was trained in."""
    model = api.load(run_path, "last")
    folder, gpt = RunFolder.open(run_path), model.gpt
    device = gpt.wte.weight.device
    precision = folder.decided("precision", int(1e12), "fp32")
    rows = max(1, EVAL_TOKENS // gpt.block_size)
    stream = session.open_stream(manifest, "val")
    with torch.no_grad(), autocast(device, precision):
        forward = partial(gpt, per_token=True)
        return mean_loss(forward, stream, gpt.block_size, 0, rows, device, model.tokenizer.token_bytes())
