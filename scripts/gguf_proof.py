"""Exports models to GGUF, loads the files in llama.cpp, and compares token ids, logits and greedy continuations.

    pip install 'overnight[gguf]' llama-cpp-python        # this compiles llama.cpp
    python scripts/gguf_proof.py [RUN ...] [--write benchmarks/results/gguf.md]

Without a RUN it trains small models itself, in some minutes on a CPU: one for each tokenizer, on Python's standard
library, and one with the exact GELU. All of it is float32 on the CPU, llama.cpp's keys and values included.

Exit code 0 only if for each model every token id is the same, the logits of float32 are the model's to 5e-5 of the
largest once llama.cpp's GELU of 16 bits is imitated, and no continuation of float32 leaves the model's but at a tie
within their difference. What float16, bfloat16 and q8_0 change is reported.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import math
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overnight import generate, session
from overnight.data.dataset import Manifest
from overnight.errors import UserError
from overnight.exchange import gguf, llamacpp, sources
from overnight.machine.device import describe, versions
from overnight.model import GPT
from overnight.pretrained import Pretrained
from overnight.runs import datasets_of
from overnight.tokenizers import END_OF_TEXT, Tokenizer

WINDOWS, PROMPTS, PROMPT, CONTINUED = 8, 3, 32, 200
LEFT = 5e-5  # of the largest logit: what sums of float32, rounded to one or the other step of that GELU, may change
TEXTS = [
    "def main() -> None:\n    print('Hello,   world!')\n\n\n\treturn 0x1F + 12345.678  # don't, we've, I'LL\n",
    f"The words {END_OF_TEXT} are text here, and so is [PAD3].\r\n \x00 \x7f\\n \\x41",
    "naïve cafe\u0301 \u00a0 \u3000 — “quoted” … 日本語 한국어 עברית العربية हिन्दी 😀👩‍👩‍👧 Ⅷ ½ ²",
]
KINDS = {  # name: (tokenizer, one file alone, further options of train)
    "gpt2": ("gpt2", False, ["--train.steps", "30", "--train.tokens-per-step", "1024"]),
    "bpe:2048": ("bpe:2048", False, ["--model.no-bias"]),
    "bytes": ("bytes", False, []),
    "chars": ("chars", False, []),
    "chars, no end of text": ("chars", True, []),
    "chars, exact GELU": ("chars", True, ["--model.activation", "gelu"]),
}
OPTIONS = [
    *(
        "gpt2-tiny",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--compile",
        "off",
        "--train.steps",
        "100",
    ),
    *("--data.sequence-length", "256", "--train.tokens-per-step", "2048", "--model.n-embd", "128"),
    *("--sample.every", "0", "--checkpoint.every", "0", "--eval.every", "0"),
]


@dataclass
class Result:
    """Of one model: numbers by dtype."""

    name: str
    ids: int = 0
    largest: float = 0.0
    """Of the model's logits."""
    perplexity: float = 0.0
    difference: dict[str, float] = field(default_factory=dict)
    perplexities: dict[str, float] = field(default_factory=dict)
    left: float = 0.0
    """Of float32's difference, where the model computes its GELU as llama.cpp does."""
    equal: list[str] = field(default_factory=list)
    """Tokens of each continuation before the first that is another one, and by how much that is less likely."""
    failures: list[str] = field(default_factory=list)


class CoarseGELU(nn.Module):
    """llama.cpp's GELU on the CPU: a table of 65,536 values, looked up and kept in float16 (ggml-cpu/vec.h)."""

    def forward(self, x: Tensor) -> Tensor:
        found = F.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, found))


def overnight(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "overnight", *arguments], check=True, stdout=subprocess.DEVNULL)


def trained(name: str, folder: Path) -> Path:
    """A run of one of KINDS."""
    tokenizer, alone, more = KINDS[name]
    source = ["files", str(Path(sysconfig.get_path("stdlib")) / "argparse.py")] if alone else ["stdlib"]
    data, run = folder / "data", folder / "run"
    overnight("prepare", *source, "--out", str(data), "--tokenizer", tokenizer)
    overnight("train", *OPTIONS, *more, "--data", str(data), "--out", str(run))
    return run


def windows(run: Path, length: int) -> Tensor:
    """Text that was held out, (WINDOWS, length + 1) int64."""
    manifest = Manifest.read(Path(datasets_of(run)[-1]["path"]))
    tokens = session.open_stream(manifest, "val")
    starts = [i * (tokens.length - length - 1) // WINDOWS for i in range(WINDOWS)]
    return torch.from_numpy(np.stack([tokens.read(i, length + 1).astype(np.int64) for i in starts]))


def text_of(file: Any, ids: list[int]) -> bytes:
    """What llama.cpp shows for ids. `Llama.detokenize` cuts tokens of more than 32 bytes."""
    import llama_cpp

    vocabulary, buffer = llama_cpp.llama_model_get_vocab(file.model), ctypes.create_string_buffer(4096)
    sizes = ((llama_cpp.llama_token_to_piece(vocabulary, i, buffer, len(buffer), 0, True)) for i in ids)
    return b"".join(buffer.raw[:size] for size in sizes)


def compare_ids(tokenizer: Tokenizer, file: Any, texts: list[str], result: Result) -> None:
    """Every text's ids, also with end of text as a token; and each character that the tokenizer knows, by itself."""
    known = getattr(tokenizer, "characters", None)
    if known is not None:
        texts = ["".join(c for c in text if c in known) for text in texts]
    for text in texts:
        for special, own in ((False, tokenizer.encode(text)), (True, tokenizer.encode_prompt(text))):
            theirs = file.tokenize(text.encode(), add_bos=True, special=special)  # add_bos: if the file says so
            result.ids += len(own)
            if theirs != own.tolist():
                result.failures.append(f"other ids for {text[:40]!r}...")
        if text_of(file, tokenizer.encode(text).tolist()) != text.encode():
            result.failures.append(f"other text from the ids of {text[:40]!r}...")


def nll(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits.double(), targets, reduction="sum"))


@torch.no_grad()
def compare_logits(gpt: GPT, path: Path, dtype: str, text: Tensor, result: Result) -> None:
    differences, total, own_total = [], 0.0, 0.0
    for row in text:
        own, theirs = gpt(row[None, :-1])[0], llamacpp.logits(path, row[:-1].tolist())
        differences.append(float((own - theirs).abs().max()))
        result.largest = max(result.largest, float(own.abs().max()))
        total, own_total = total + nll(theirs, row[1:]), own_total + nll(own, row[1:])
    count = text[:, 1:].numel()
    result.difference[dtype] = max(differences)
    result.perplexities[dtype], result.perplexity = math.exp(total / count), math.exp(own_total / count)


@torch.no_grad()
def compare_with_coarse_gelu(pretrained: Pretrained, path: Path, text: Tensor, result: Result) -> None:
    gpt = pretrained.build()
    for block in gpt.h:
        block.mlp.activation = CoarseGELU()
    for row in text:
        difference = gpt(row[None, :-1])[0] - llamacpp.logits(path, row[:-1].tolist())
        result.left = max(result.left, float(difference.abs().max()))
    if result.left > LEFT * result.largest:
        result.failures.append(f"the logits differ by {result.left:.1e} with the same GELU")


@torch.no_grad()
def compare_continuations(gpt: GPT, path: Path, text: Tensor, result: Result) -> None:
    """Greedy continuations: CONTINUED tokens, or as many as the model sees."""
    length = min(PROMPT, gpt.block_size // 4)
    count = min(CONTINUED, gpt.block_size - length)
    file = llamacpp.load(path, gpt.block_size)
    for row in text[:PROMPTS, :length]:
        own = torch.cat(list(generate.stream(gpt, row[None], count, temperature=0)), 1)[0].tolist()
        file.reset()
        file.eval(row.tolist())
        theirs: list[int] = []
        for _ in range(count):
            theirs.append(int(file.scores[file.n_tokens - 1].argmax()))
            file.eval(theirs[-1:])
        at = next((i for i, pair in enumerate(zip(own, theirs, strict=True)) if pair[0] != pair[1]), count)
        result.equal.append(f"{at}")
        if at < count:
            logits = gpt(torch.tensor([[*row.tolist(), *own[:at]]]))[0, -1]
            gap = float(logits[own[at]] - logits[theirs[at]])
            result.equal[-1] += f" (then two logits {gap:.0e} apart)"
            if gap > 2 * result.difference["float32"]:
                result.failures.append(f"token {at} is another one, though {gap:.1e} less likely")
    file.close()


def prove(name: str, run: Path, folder: Path) -> Result:
    pretrained = sources.read(str(run))
    gpt, result = pretrained.build(), Result(name)
    text = windows(run, gpt.block_size)
    assert pretrained.tokenizer is not None
    written = replace(pretrained, model=replace(pretrained.model, activation="gelu_tanh"))
    for dtype in gguf.DTYPES:
        path = folder / f"{dtype}.gguf"
        try:
            gguf.write(written, path, dtype)
        except UserError as error:
            print(error)
            continue
        compare_logits(gpt, path, dtype, text, result)
    path = folder / "float32.gguf"
    compare_with_coarse_gelu(pretrained, path, text, result)
    compare_continuations(gpt, path, text, result)
    file = llamacpp.load(path, gpt.block_size)
    compare_ids(pretrained.tokenizer, file, [*TEXTS, *map(pretrained.tokenizer.decode, text)], result)
    file.close()
    return result


def report(results: list[Result]) -> str:
    """The findings as a page of Markdown."""
    found = versions()
    lines = [
        "# GGUF in llama.cpp, beside the models themselves\n",
        f"{describe(torch.device('cpu'))}, torch {found['torch']}, llama-cpp-python {version('llama-cpp-python')}, "
        f"gguf {version('gguf')}, "
        f"Python {found['python']}, {datetime.date.today().isoformat()}; `python scripts/gguf_proof.py`\n",
        f"Largest difference of any logit, at {WINDOWS} windows of held-out text, all positions:\n",
        "| model | largest logit | float32 | float32, llama.cpp's GELU imitated | float16 | bfloat16 | q8_0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        others = " | ".join(
            f"{one.difference[dtype]:.1e}" if dtype in one.difference else "-" for dtype in list(gguf.DTYPES)[1:]
        )
        lines.append(
            f"| {one.name} | {one.largest:.1f} | {one.difference['float32']:.1e} | {one.left:.1e} | {others} |"
        )
    lines += [
        "\nPerplexity of the same text, by token:\n",
        "| model | itself | float32 | float16 | bfloat16 | q8_0 |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        others = " | ".join(f"{one.perplexities[d]:.4f}" if d in one.perplexities else "-" for d in gguf.DTYPES)
        lines.append(f"| {one.name} | {one.perplexity:.4f} | {others} |")
    lines += [
        "\nToken ids, and greedy continuations in float32:\n",
        "| model | ids compared | equal tokens of each continuation |",
        "|---|---|---|",
    ]
    lines += [f"| {one.name} | {one.ids:,} | {', '.join(one.equal)} |" for one in results]
    failures = [f"- {one.name}: {failure}" for one in results for failure in one.failures]
    return "\n".join([*lines, "\nAll of it holds." if not failures else "\nFailures:\n", *failures]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--write", type=Path, help="a file for the findings")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for kind in given.runs or KINDS:
            folder = Path(name) / f"{len(results)}"
            folder.mkdir()
            results.append(prove(str(kind), kind if isinstance(kind, Path) else trained(kind, folder), folder))
            print(results[-1], flush=True)
    page = report(results)
    print(page)
    if given.write:
        given.write.write_text(page)
    return int(any(one.failures for one in results))


if __name__ == "__main__":
    sys.exit(main())
