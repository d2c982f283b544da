"""How fast HellaSwag is scored beside build-nanogpt's loop, on the same rows with the same random weights.

    pip install requests tqdm transformers
    python benchmarks/hellaswag_against_build_nanogpt.py --build-nanogpt DIR --file hellaswag_val.jsonl [--rows 200]

DIR is a checkout of build-nanogpt. Its own code runs: model, `render_example`, `iterate_examples`,
`get_most_likely_row`, and the block of train_gpt2.py that evaluates, cut out of the script. It computes under autocast
in bfloat16, as it is; and a second time with autocast taken out, in float32, as its hellaswag.py does when it runs
alone. Three things are redirected: the data file, which it would download, is FILE; `tiktoken.get_encoding` gets
GPT-2's merges from the package; what `get_most_likely_row` gives is noted down. Ours takes the same rows from their
texts to the choices, build-nanogpt's protocol alone; with both protocols, as `overnight eval` does it, is a line of its
own. The sides run in turns. In float32 all choices must be equal.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from prepare_throughput import PATTERN, RESULTS, processor

from overnight.distributed import World
from overnight.evals.hellaswag import HellaSwag, completion, open_hellaswag
from overnight.evals.scoring import score
from overnight.exchange import sources
from overnight.machine.device import describe
from overnight.model import GPT
from overnight.tokenizers import train

SHAPES = {"gpt2-random": (12, 12, 768), "tiny-random": (2, 2, 64)}  # layers, heads, width
NAME = "hellaswag_against_build_nanogpt"
Side = Callable[[], list[int]]  # the choice for each row


def peer_module(checkout: Path, data: Path) -> types.ModuleType:
    """build-nanogpt's hellaswag.py, with `data`/hellaswag_val.jsonl as its file."""
    import tiktoken

    from overnight.tokenizers.gpt2 import GPT2Tokenizer

    encoding = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=GPT2Tokenizer()._ranks(), special_tokens={"<|endoftext|>": 50256}
    )
    tiktoken.get_encoding = lambda name: encoding
    spec = importlib.util.spec_from_file_location("hellaswag", checkout / "hellaswag.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DATA_CACHE_DIR = str(data)
    return module


def peer_parts(checkout: Path) -> tuple[dict[str, Any], types.CodeType]:
    """From train_gpt2.py: its classes and functions, and the block that evaluates."""
    tree = ast.parse((checkout / "train_gpt2.py").read_text())
    kept = (ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom)
    defined = [node for node in tree.body if isinstance(node, kept) and "hellaswag" not in ast.unparse(node)]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(ast.Module(defined, []), "train_gpt2.py", "exec"), names)
    block = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "iterate_examples" in ast.unparse(node)][
        -1
    ]
    return names, compile(ast.Module(block.body, []), "train_gpt2.py", "exec")


def their_model(names: dict[str, Any], shape: tuple[int, int, int], folder: Path) -> tuple[Any, GPT]:
    """Random weights in its model, and in ours from the checkpoint that it saves."""
    layers, heads, width = shape
    torch.manual_seed(0)
    config = names["GPTConfig"](vocab_size=50304, n_layer=layers, n_head=heads, n_embd=width)
    with contextlib.redirect_stdout(io.StringIO()):
        model = names["GPT"](config)
    sys.modules["__main__"].GPTConfig = names["GPTConfig"]  # type: ignore[attr-defined]
    path = folder / "model_00000.pt"
    torch.save({"model": model.state_dict(), "config": config, "step": 0, "val_loss": 0.0}, path)
    return model, sources.read(str(path)).build()


def theirs(
    names: dict[str, Any], block: types.CodeType, module: types.ModuleType, model: Any, device: torch.device, bf16: bool
) -> Side:
    """Its loop; without `bf16` in float32."""

    def run() -> list[int]:
        chosen: list[int] = []

        def noted(*arguments: Any) -> int:
            chosen.append(names["get_most_likely_row"](*arguments))
            return chosen[-1]

        own = types.SimpleNamespace(**vars(torch))
        own.autocast = torch.autocast if bf16 else lambda **_: contextlib.nullcontext()
        model.eval()
        space = names | {
            "torch": own, "get_most_likely_row": noted, "model": model, "device": device.type,
            "device_type": device.type, "iterate_examples": module.iterate_examples,
            "render_example": module.render_example, "ddp": False, "ddp_rank": 0, "ddp_world_size": 1,
            "master_process": True, "log_file": os.devnull, "step": 0,
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            exec(block, space)
        return chosen

    return run


def ours(gpt: GPT, evaluation: HellaSwag, device: torch.device, bf16: bool, both: bool) -> Side:
    """From texts to choices: build-nanogpt's protocol, or `both`."""
    tokenizer = train("gpt2", [])

    def scorer(questions: list[Any]) -> list[Any]:
        return score(gpt, questions, device=device, precision="bf16" if bf16 else "fp32")

    def run() -> list[int]:
        if both:
            found = HellaSwag(evaluation.examples)(scorer, tokenizer, World())
            return [row["choices"]["acc_norm"] for row in found.rows]
        answers = scorer([completion(tokenizer, example) for example in evaluation.examples])
        means = [[answer.nats / answer.tokens for answer in row] for row in answers]
        return [row.index(min(row)) for row in means]

    return run


def compared(sides: dict[str, Side], repeats: int) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Median seconds, and the choices of the last turn."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    choices = {}
    for _ in range(repeats):
        for side, run in sides.items():
            begin = time.perf_counter()
            choices[side] = run()
            seconds[side].append(time.perf_counter() - begin)
            print(f"{side}: {seconds[side][-1]:.2f} s", file=sys.stderr)
    return {side: statistics.median(own) for side, own in seconds.items()}, choices


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device, evaluation = torch.device(given.device), open_hellaswag(given.file, given.rows, print)
    # all that its code reads of a row
    rows = [{"ctx": one.ctx, "endings": one.endings, "label": one.label} for one in evaluation.examples]
    (folder / "hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.set_float32_matmul_precision("high")  # as train_gpt2.py sets it
    module, (names, block) = peer_module(given.build_nanogpt, folder), peer_parts(given.build_nanogpt)
    their_gpt, gpt = their_model(names, SHAPES[given.model], folder)
    their_gpt.to(device), gpt.to(device)
    sides: dict[str, Side] = {}
    for bf16, name in ((True, "bf16"), (False, "fp32")):
        sides[f"build-nanogpt {name}"] = theirs(names, block, module, their_gpt, device, bf16)
        sides[f"overnight {name}"] = ours(gpt, evaluation, device, bf16, False)
    sides["overnight bf16, both protocols"] = ours(gpt, evaluation, device, True, True)
    for run in sides.values() if device.type == "cuda" else ():
        run()  # a GPU's first kernels are slow
    seconds, choices = compared(sides, given.repeats)
    different = sum(a != b for a, b in zip(choices["build-nanogpt fp32"], choices["overnight fp32"], strict=True))
    return {
        "rows": len(rows),
        "file": given.file.name,
        "model": given.model,
        "repeats": given.repeats,
        "seconds": seconds,
        "different_choices_fp32": different,
        "different_choices_bf16": sum(
            a != b for a, b in zip(choices["build-nanogpt bf16"], choices["overnight bf16"], strict=True)
        ),
        "device": describe(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        "load": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"HellaSwag, {found['rows']} rows of {found['file']}, {found['model']}; medians of {found['repeats']} turns; "
        f"{found['threads']} threads.",
        "",
        "| | seconds | rows/s | faster than build-nanogpt bf16 | than build-nanogpt fp32 |",
        "|---|---:|---:|---:|---:|",
    ]
    seconds = found["seconds"]
    for side, own in seconds.items():
        than = [seconds[f"build-nanogpt {name}"] / own for name in ("bf16", "fp32")]
        lines.append(f"| {side} | {own:.2f} | {found['rows'] / own:.1f} | {than[0]:.2f} | {than[1]:.2f} |")
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    lines += [
        "",
        f"Choices that differ from build-nanogpt's: {found['different_choices_fp32']} in float32, "
        f"{found['different_choices_bf16']} in bfloat16 (where its losses are rounded to 8 bits).",
        "",
        f"{found['device']}; {versions}; load {found['load']:.1f}; {found['date']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-nanogpt", type=Path, required=True, help="a checkout of build-nanogpt")
    parser.add_argument("--file", type=Path, help="rows of HellaSwag; by default the validation set, fetched once")
    parser.add_argument("--rows", type=int, default=200, help="so many of them, spread evenly; 0: all")
    parser.add_argument("--model", choices=SHAPES, default="gpt2-random")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(given, Path(folder))
    text = table(found)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = f"{NAME}_{given.device.partition(':')[0]}"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    if found["different_choices_fp32"]:
        raise SystemExit("in float32 not all choices are equal")


if __name__ == "__main__":
    main()
