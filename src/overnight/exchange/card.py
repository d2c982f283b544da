"""README.md of an export: what the model is and how it came to be, from its run's own files and nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from overnight import checkpoint
from overnight.config import OptimConfig
from overnight.data.mixture import Mixture
from overnight.errors import UserError
from overnight.exchange.nanogpt import dataset_name
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder, read_lines

USE = {
    "hf": """\
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    ids = tokenizer("Once", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0])
""",
    "nanogpt": """\
    python sample.py --out_dir=FOLDER
    python train.py --init_from=resume --out_dir=FOLDER --dataset=...

sample.py looks for the meta.pkl of this folder, where it has one, as data/DATASET/meta.pkl in its own.
""",
    "llm.c": """\
    ./train_gpt2cu -e FOLDER/model.bin ...
""",
    "gguf": """\
    from llama_cpp import Llama

    model = Llama("FOLDER/model.gguf", n_ctx=CONTEXT)
    text = model("Once", max_tokens=50)["choices"][0]["text"]
""",
}
TRUST = """\
modeling_overnight.py in this folder is the model's code, which transformers runs with `trust_remote_code=True`: look at
it before. It has no cache: each new token costs a pass over the whole text.
"""
ARCHITECTURES = {
    "gpt2": "GPT-2: pre-LayerNorm transformer, learned positions, tied head",
    "modern": "transformer with rotary positions, RMSNorm, normed queries and keys, value embeddings, untied head",
}
ACTIVATIONS = {"gelu_tanh": "GELU, tanh form", "gelu": "GELU, exact", "relu2": "ReLU^2"}
# The folders of absolute paths: how the maker's machine is laid out is nobody's business.
FOLDERS = r"(?<![^,=])(?:/|[A-Za-z]:\\)(?:[^/\\,:]+[/\\])*"
Rows = list[tuple[str, str]]


def card(pretrained: Pretrained, certificate: dict[str, Any], title: str, licence: str) -> str:
    """Markdown with the metadata that the Hugging Face hub reads. What the run's files do not say is left out."""
    to, training, mixture = certificate["to"], list[str](), None
    if pretrained.step is not None:
        folder = Path(pretrained.where)
        run = RunFolder.open(folder.parent.parent)
        attempts = read_lines(run.path / "attempts.jsonl")
        dataset = attempts[-1]["dataset"] if attempts else {}
        mixture = _mixture(dataset)
        training = ["", "## Training", "", _table(_training(run, folder, attempts)), "", _command(attempts)]
        training += ["## Data", "", _table([("fingerprint", str(dataset.get("fingerprint"))), *_data(mixture)])]
    parts = [_front_matter(pretrained, to, licence, mixture), f"# {title}", "", _model(pretrained), *training]
    if to in USE:
        parts += ["", "## Use", "", _use(to, pretrained)]
    if to in ("hf", "gguf"):
        parts += ["", f"A text can have up to {pretrained.block_size} tokens, prompt included."]
    return "\n".join([*parts, "", "## Checked", "", _checked(certificate), ""])


def _use(to: str, pretrained: Pretrained) -> str:
    values = {"DATASET": dataset_name(pretrained.tokenizer), "CONTEXT": str(pretrained.block_size)}
    use = re.sub("|".join(values), lambda found: values[found[0]], USE[to]).rstrip()
    if pretrained.model.block == "gpt2":
        return use
    return use.replace(
        "CausalLM.from_pretrained(FOLDER)", "CausalLM.from_pretrained(FOLDER, trust_remote_code=True)"
    ) + (f"\n\n{TRUST.rstrip()}")


def _front_matter(pretrained: Pretrained, to: str, licence: str, mixture: Mixture | None) -> str:
    library = ["library_name: transformers"] if to == "hf" else []
    tags = ["- gpt2"] if pretrained.model.block == "gpt2" else ["- custom_code"]
    lines = [f"license: {licence}", *library, "pipeline_tag: text-generation", "tags:", *tags, "- overnight"]
    corpora = [] if mixture is None else mixture.corpora
    repos = [str(source.get("repo")) for corpus in corpora for source in corpus.manifest.sources]
    on_hub = dict.fromkeys(repo for repo in repos if re.fullmatch(r"[\w.-]+/[\w.-]+", repo))
    return "\n".join(["---", *lines, *(["datasets:"] if on_hub else []), *(f"- {repo}" for repo in on_hub), "---", ""])


def _model(pretrained: Pretrained) -> str:
    model, tokenizer = pretrained.model, pretrained.tokenizer
    parameters = sum(tensor.numel() for tensor in pretrained.tensors.values())
    rows = [
        ("architecture", ARCHITECTURES[model.block]),
        ("parameters", f"{parameters:,}"),
        ("layers, heads, width", f"{model.n_layer}, {model.n_head}, {model.n_embd}"),
        ("context", f"{pretrained.block_size:,} tokens"),
        ("vocabulary", f"{model.vocab_size:,} rows"),
        ("tokenizer", "unknown" if tokenizer is None else f"{tokenizer.name}, {tokenizer.vocab_size:,} ids"),
        ("activation", ACTIVATIONS[model.activation]),
        ("biases", "yes" if model.bias else "no"),
    ]
    if model.bigram_rows:
        rows.append(("table of pairs of tokens", f"{model.bigram_rows:,} rows"))
    made = "Exported" if pretrained.step is not None else "Converted"
    return f"{made} with overnight.\n\n{_table(rows)}"


def _training(run: RunFolder, folder: Path, attempts: list[dict[str, Any]]) -> Rows:
    config, state = run.config(), checkpoint.read_state(folder)
    recipe = config.recipe
    optim = recipe.optim
    rows = [
        ("preset", config.preset),
        ("steps", f"{state.step:,}"),
        ("tokens seen", f"{state.tokens:,}"),
        ("tokens a step", f"{recipe.train.tokens_per_step:,}"),
        ("optimizer", _optimizer(optim)),
        ("learning rate", f"{optim.lr}, {optim.schedule}"),
        ("dropout", str(recipe.model.dropout)),
        ("seed", str(recipe.seed)),
    ]
    if recipe.init_from:
        rows.append(("started from", f"the weights of {Path(recipe.init_from).name}"))
    measured = [
        line
        for line in read_lines(run.path / "metrics.jsonl")
        if line.get("kind") == "eval" and line["step"] <= state.step and line.get("val_loss") is not None
    ]
    if measured:
        rows.append(("validation loss", _validation(measured[-1])))
    devices = list(dict.fromkeys(str(attempt["device"]) for attempt in attempts if "device" in attempt))
    return [*rows, ("device", ", ".join(devices))] if devices else rows


def _optimizer(optim: OptimConfig) -> str:
    adamw = f"AdamW, betas {optim.beta1} and {optim.beta2}"
    decay = f"weight decay {optim.weight_decay}"
    if optim.matrices == "adamw":
        return f"{adamw}, {decay}"
    return f"Muon on the matrices, momentum {optim.momentum}, {decay}; {adamw} on the rest"


def _validation(line: dict[str, Any]) -> str:
    bits = line.get("val_bits_per_byte")
    per_byte = f", {bits:.4f} bits per byte" if bits is not None else ""
    tokens = f" on {line['val_tokens']:,} tokens" if "val_tokens" in line else ""
    return f"{line['val_loss']:.4f} nats per token{per_byte}{tokens}, at step {line['step']:,}"


def _command(attempts: list[dict[str, Any]]) -> str:
    words = [str(word) for word in attempts[0].get("command", [])] if attempts else []
    if not words:
        return ""
    return f"    {shlex.join([Path(words[0]).name, *(re.sub(FOLDERS, '', word) for word in words[1:])])}\n"


def _mixture(dataset: dict[str, Any]) -> Mixture | None:
    """What the run was trained on, where it is still there and still the same."""
    try:
        mixture = Mixture.open(str(dataset.get("path")))
    except UserError:
        return None
    return mixture if mixture.fingerprint == dataset.get("fingerprint") else None


def _data(mixture: Mixture | None) -> Rows:
    rows: Rows = []
    corpora = () if mixture is None else mixture.corpora
    for corpus in corpora:
        manifest = corpus.manifest
        name = f"{corpus.name}, weight {corpus.weight}" if len(corpora) > 1 else "training text"
        split = manifest.splits["train"]
        documents = "" if split["documents"] is None else f"{split['documents']:,} documents, "
        rows.append((name, f"{documents}{split['tokens']:,} tokens"))
        for source in manifest.sources:
            licence = source.get("licence") or "unknown"
            revision = f", revision {source['revision']}" if source.get("revision") else ""
            rows.append(("source", f"{source.get('name', 'unknown')}{revision}, licence {licence}"))
    return rows


def _checked(certificate: dict[str, Any]) -> str:
    logits, runtime = certificate["logits"], certificate["runtime"]
    versions = ", ".join(f"{name} {version}" for name, version in runtime["versions"].items())
    ids = certificate["tokenizer"]
    tokens = f", and the same {ids['ids_compared']:,} token ids for the same text" if ids else ""
    return (
        f"These files ({certificate['dtype']}) were reloaded with {runtime['name']} ({versions}) and gave the same "
        f"logits on {logits['tokens']:,} tokens (largest difference {logits['largest_difference']:.1e}, computed in "
        f"{logits['computed_in']}){_continuations(certificate['continuations'])}{tokens}. "
        f"{_differs(certificate)}certificate.json has the numbers, and the SHA-256 of every file."
    )


def _continuations(found: dict[str, Any]) -> str:
    """A part of a sentence; empty where the context has no room for any."""
    if not found["prompts"]:
        return ""
    parted = f" ({found['ties']} up to a tie)" if found["ties"] else ""
    return f", the same {found['prompts']} greedy continuations{parted}"


def _differs(certificate: dict[str, Any]) -> str:
    """What else there is to know of how the model computes, in sentences."""
    found, sentences = certificate.get("llama.cpp"), ""
    if found:
        sentences += (
            f"llama.cpp itself (llama-cpp-python {found['versions']['llama-cpp-python']}) gave the logits to "
            f"{found['largest_difference']:.1e}, the largest of which is {found['largest_logit']:.1f}"
            f"{_continuations(found['continuations'])}. "
        )
    if (changes := certificate["logits"]["rounding_to_dtype_changes_up_to"]) > 0:
        sentences += (
            f"The logits of the model as it was trained differ by up to {changes:.1e}, by {changed_by(certificate)}. "
        )
    return sentences


def changed_by(certificate: dict[str, Any]) -> str:
    """What makes an export, at its best, another model than the one that was trained; empty where nothing does."""
    gelu = ["the other form of GELU"] if certificate["approximate_gelu"] else []
    rounding = [f"rounding to {certificate['dtype']}"] if certificate["dtype"] != "float32" else []
    return " and ".join(gelu + rounding)


def _table(rows: Rows) -> str:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    return "\n".join(["| | |", "|---|---|", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows)])
