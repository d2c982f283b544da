"""GPT-2 (124M) at full size with random weights: transformers -> overnight -> `export --to hf` -> transformers.

    pip install transformers
    python scripts/full_size.py [--write benchmarks/results/full_size.md]

Some minutes and 4 GB of memory on a CPU. Exit code 0 only if the logits are equal to 1e-5 in float32 at each crossing.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor

import overnight
from overnight.machine.device import describe, versions

AGREES = 1e-5


def tokens() -> Tensor:
    return torch.randint(0, 50_257, (1, 1024), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def theirs(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    found: Tensor = model.eval()(tokens()).logits
    return found


@torch.no_grad()
def ours(folder: Path) -> Tensor:
    return overnight.load(folder, device="cpu")(tokens())


def random_weights(folder: Path) -> None:
    """None of them at the value that training begins with."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="a file for the findings")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made, out = Path(name) / "made", Path(name) / "out"
        random_weights(made)
        begin = time.perf_counter()
        command = [sys.executable, "-m", "overnight", "export", made, "--to", "hf", "--out", out]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        first = theirs(made)
        crossings = {
            "transformers -> overnight": ours(made),
            "overnight -> export -> transformers": theirs(out),
            "the export -> overnight": ours(out),
        }
    differences = {what: float((found - first).abs().max()) for what, found in crossings.items()}
    found = versions()
    lines = [
        "# GPT-2 (124M) at full size: in, and out again\n",
        f"{describe(torch.device('cpu'))}, torch {found['torch']}, transformers {transformers.__version__}, Python "
        f"{found['python']}, {datetime.date.today().isoformat()}; `python scripts/full_size.py`\n",
        f"Random weights, 1,024 tokens, float32. The largest logit is {float(first.abs().max()):.1f}; the largest "
        "difference of any from transformers' own model:\n",
        "| crossing | difference |\n|---|---|",
        *(f"| {what} | {difference:.1e} |" for what, difference in differences.items()),
        f"\n`overnight export --to hf`, certificate included: {used.ru_utime + used.ru_stime:.0f} s of processor time, "
        f"{seconds:.0f} s in all beside other work, {used.ru_maxrss / 2**20:.1f} GiB of memory at most. It said:\n",
        *(f"    {line.replace(str(out), 'OUT')}" for line in said.splitlines()),
    ]
    page = "\n".join(lines) + "\n"
    print(page)
    if given.write:
        given.write.write_text(page, encoding="utf-8")
    return int(max(differences.values()) > AGREES)


if __name__ == "__main__":
    sys.exit(main())
