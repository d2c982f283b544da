"""From each source of weights into a run, a sample and an evaluation; which weights they were is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gpts import build_nanogpt_checkpoint, nanogpt_checkpoint, random_gpt
from safetensors.torch import load_file, save_file

import overnight as package
from overnight import checkpoint, files
from overnight.errors import UserError
from overnight.exchange import huggingface, llmc, sources
from overnight.model import weights
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder
from overnight.tokenizers.simple import BytesTokenizer

ASSUMED = "takes GPT-2's tokenizer"
SMALL = ["--data.sequence-length", "16", "--train.steps", "1", "--train.tokens-per-step", "64", "--eval.every", "0"]
SMALL += ["--sample.every", "0"]


@pytest.fixture(scope="module")
def tanh():
    return random_gpt(activation="gelu_tanh", vocab_size=257)


def test_a_log_folder_is_its_newest_step_or_the_one_asked_for(tanh, tmp_path):
    for step in (99_999, 100_000, 250):
        build_nanogpt_checkpoint(tanh, tmp_path / f"model_{step:05d}.pt")
    (tmp_path / "model_notes.pt").write_text("not a step")
    assert sources.read(str(tmp_path)).where == str(tmp_path / "model_100000.pt")
    assert sources.read(str(tmp_path), "250").where == str(tmp_path / "model_00250.pt")
    with pytest.raises(UserError, match="no checkpoint '7'; there are: 250, 99999, 100000"):
        sources.read(str(tmp_path), "7")


def test_folders_of_llmc(tanh, overnight, tmp_path):
    content = b"".join(llmc.to_bytes(weights(tanh), 4, torch.float32))
    for step in (5, 40):
        (tmp_path / f"model_{step:08d}.bin").write_bytes(content)
    (tmp_path / "state_00000040_0.bin").write_bytes(b"its optimizer")
    assert sources.read(str(tmp_path)).where == str(tmp_path / "model_00000040.bin")
    overnight("export", tmp_path, "--to", "llm.c", "--out", tmp_path / "out")
    again = sources.read(str(tmp_path / "out"))
    assert again.where == str(tmp_path / "out" / "model.bin")
    assert torch.equal(again.tensors["wte.weight"], weights(tanh)["wte.weight"])


def test_a_step_of_what_has_no_steps_is_refused(tanh, tmp_path):
    nanogpt_checkpoint(tanh, tmp_path / "ckpt.pt")
    for source in (tmp_path, tmp_path / "ckpt.pt", "gpt2"):
        with pytest.raises(UserError, match="it is no run"):
            sources.read(str(source), "500")


@pytest.mark.parametrize("kind", ["nanogpt", "build-nanogpt", "llm.c", "hf"])
def test_that_a_tokenizer_was_assumed_is_said_once(kind, overnight, tmp_path):
    gpt = random_gpt(activation="gelu_tanh", vocab_size=50257, n_embd=8, n_layer=1)
    if kind == "nanogpt":
        nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt")
    elif kind == "build-nanogpt":
        build_nanogpt_checkpoint(gpt, tmp_path / "model_00001.pt")
    elif kind == "llm.c":
        (tmp_path / "model.bin").write_bytes(b"".join(llmc.to_bytes(weights(gpt), 4, torch.float32)))
    else:
        huggingface.write(Pretrained("made", gpt.config, 32, weights(gpt)), tmp_path, torch.float32)
    sampled = overnight("sample", tmp_path, "--max-new-tokens", "1", "--device", "cpu")
    assert sampled.stderr.count(ASSUMED) == 1 and ASSUMED not in sampled.stdout
    assert "moments" not in sampled.stderr  # nothing is trained
    shown = overnight("inspect", tmp_path)
    assert (shown.stdout + shown.stderr).count(ASSUMED) == 1


@pytest.fixture
def hf(tanh, tmp_path) -> Path:
    (tmp_path / "hf").mkdir()
    named = Pretrained("made", tanh.config, 32, weights(tanh), BytesTokenizer())
    huggingface.write(named, tmp_path / "hf", torch.float32)
    return tmp_path / "hf"


def test_a_folder_of_another_program_through_every_command(hf, overnight, dataset, tiny, tmp_path):
    out = tmp_path / "run"
    options = ["--data", dataset, "--out", out, "--init-from", hf, *tiny, *SMALL]
    overnight("train", "finetune-shakespeare", *options)
    for source in (hf, out):
        assert overnight("sample", source, "--max-new-tokens", "2", "--device", "cpu").stderr == ""
        found = overnight("eval", source, "--data", dataset, "--tokens", "500", "--device", "cpu")
        assert "nats per token" in found.stdout and found.stderr == ""
    assert package.load(hf, device="cpu").tokenizer.name == "bytes"


def _begun(out: Path) -> None:
    """Leaves `out` as it is where a run was killed before its first checkpoint."""
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").mkdir()


def _recorded(out: Path, value: object = None) -> object:
    """The identity of the first weights in decisions.jsonl; or puts another in its place."""
    path = out / "decisions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    own = next(line for line in lines if line["name"] == "init_from")
    if value is not None:
        own["value"] = value
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return own["value"]


def test_a_run_that_was_trained_anew_is_noticed(overnight, dataset, tiny, tmp_path):
    first, out = tmp_path / "first", tmp_path / "second"
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", first, *tiny, *SMALL)
    again = [
        "train",
        "gpt2-tiny",
        "--data",
        dataset,
        "--out",
        out,
        "--init-from",
        first,
        *tiny,
        *SMALL,
        "--sample.every",
        "0",
    ]
    overnight(*again)
    identity = _recorded(out)
    assert isinstance(identity, dict) and identity["step"] == 1 and len(identity["sha256"]) == 64
    for recorded in (identity, 1):  # the number of its step is what earlier versions wrote
        _begun(out)
        _recorded(out, recorded)
        overnight(*again)
    folder = first / "checkpoints" / checkpoint.folder_name(1)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "ln_f.weight": tensors["ln_f.weight"] + 1}, folder / "model.safetensors")
    state = json.loads((folder / "state.json").read_text())
    own = state["files"]["model.safetensors"]
    own["sha256"] = files.sha256(folder / "model.safetensors")
    state.pop("sha256", None)  # its own hash, which older checkpoints do not have
    (folder / "state.json").write_text(json.dumps(state))
    _begun(out)
    _recorded(out, identity)
    refused = overnight(*again, check=False)
    assert refused.returncode == 2 and "is not what it was when" in refused.stderr
    assert RunFolder.open(out).decided("init_from", 0) == identity


def test_the_identities_that_earlier_versions_wrote(tanh):
    other = Pretrained("made", tanh.config, 32, weights(tanh))
    digest = other.identity["sha256"]
    assert other.are(f"sha256 {digest}") and other.are({"sha256": digest})
    assert not other.are("sha256 0") and not other.are(3) and not other.are(None)


@pytest.mark.parametrize("form", ["preset", "toml", "toml of a toml", "json", "function"])
def test_a_finetune_says_that_it_needs_weights_whatever_names_it(form, overnight, dataset, tiny, tmp_path, monkeypatch):
    name = "finetune-shakespeare"
    if form.startswith("toml"):
        (tmp_path / "mine.toml").write_text(f'preset = "{name}"\n')
        (tmp_path / "deeper.toml").write_text(f'preset = "{(tmp_path / "mine.toml").as_posix()}"\n')
        name = str(tmp_path / ("mine.toml" if form == "toml" else "deeper.toml"))
    elif form == "json":
        (tmp_path / "mine.json").write_text(overnight("train", name, "--print-config").stdout)
        name = str(tmp_path / "mine.json")
    elif form == "function":
        (tmp_path / "mine_finetune.py").write_text(
            f"import overnight\n\ndef it():\n    return overnight.preset('{name}')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        name = "mine_finetune:it"
    refused = overnight("train", name, "--data", dataset, "--out", tmp_path / "run", *tiny, *SMALL, check=False)
    assert refused.returncode == 2 and "--init-from" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()
