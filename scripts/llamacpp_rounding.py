"""How far llama.cpp's own rounding moves logits, by the dtype of a GGUF file: the tolerances of the certificate.

    pip install 'overnight[gguf]' llama-cpp-python        # this compiles llama.cpp
    python scripts/llamacpp_rounding.py [--write benchmarks/results/llamacpp_rounding.md]

Models of 4 to 48 layers with random weights of several sizes, on random bytes. llama.cpp's logits are compared with
those that the very weights of the file give in float64. Some seconds on a CPU. Exit code 0 only if no difference is
above half the certificate's tolerance.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from overnight.config import ModelConfig
from overnight.exchange import gguf, llamacpp
from overnight.machine.device import describe, versions
from overnight.model import GPT, initialise, weights
from overnight.pretrained import Pretrained
from overnight.tokenizers.simple import BytesTokenizer

MODELS = [(4, 128, 1), (4, 128, 3), (12, 128, 3), (12, 256, 5), (24, 64, 6), (48, 64, 3)]
"""Layers, width, and by how much the initial weights are larger than those that training begins with."""
LENGTH = 32


def model(layers: int, width: int, factor: int) -> Pretrained:
    tokenizer = BytesTokenizer()
    config = ModelConfig(n_layer=layers, n_head=4, n_embd=width, vocab_size=tokenizer.vocab_size)
    tensors = weights(initialise(GPT(config, LENGTH), 0))
    larger = {name: tensor * factor if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
    return Pretrained("random", config, LENGTH, larger, tokenizer)


@torch.no_grad()
def difference(pretrained: Pretrained, dtype: str, path: Path) -> float:
    """The largest of any logit, as a share of the largest logit."""
    ids = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    gguf.write(pretrained, path, dtype)
    own = gguf.rounded(pretrained, dtype).build().double()(ids)[0]
    return float((llamacpp.logits(path, ids[0].tolist()) - own).abs().max() / own.abs().max())


def report(rows: list[tuple[tuple[int, int, int], list[float]]]) -> str:
    """The findings as a page of Markdown."""
    found, rule = versions(), "|---|---|---|" + "---|" * len(gguf.DTYPES)
    most = [max(row[i] for _, row in rows) for i in range(len(gguf.DTYPES))]
    return "\n".join(
        [
            "# llama.cpp's own rounding, by the dtype of the file\n",
            f"{describe(torch.device('cpu'))}, torch {found['torch']}, llama-cpp-python {version('llama-cpp-python')}, "
            f"gguf {version('gguf')}, Python {found['python']}, {datetime.date.today().isoformat()}; "
            "`python scripts/llamacpp_rounding.py`\n",
            f"Largest difference of any logit from what the file's weights give in float64, as a share of the largest "
            f"logit; random weights, {LENGTH} tokens:\n",
            "| layers | width | weights, beside initial ones | " + " | ".join(gguf.DTYPES) + " |",
            rule,
            *(f"| {a} | {b} | x{c} | " + " | ".join(f"{x:.1e}" for x in row) + " |" for (a, b, c), row in rows),
            "| **most** | | | " + " | ".join(f"{x:.1e}" for x in most) + " |",
            "| **tolerance** | | | " + " | ".join(f"{x:.1e}" for x in llamacpp.FAR.values()) + " |",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="a file for the findings")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        rows = [(shape, [difference(model(*shape), dtype, path) for dtype in gguf.DTYPES]) for shape in MODELS]
    page = report(rows) + "\n"
    print(page)
    if given.write:
        given.write.write_text(page, encoding="utf-8")
    return int(any(x > far / 2 for _, row in rows for x, far in zip(row, llamacpp.FAR.values(), strict=True)))


if __name__ == "__main__":
    sys.exit(main())
