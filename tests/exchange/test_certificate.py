"""The certificate fails an export with any fault in it, and leaves nothing of it behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import torch
from gpts import random_gpt
from safetensors.torch import load_file, save_file

from overnight.exchange import export, huggingface, names, nanogpt
from overnight.model import weights
from overnight.pretrained import Pretrained
from overnight.tokenizers.simple import BytesTokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with a tokenizer, as a folder that export reads."""
    gpt, folder = random_gpt(activation="gelu_tanh", vocab_size=257), tmp_path_factory.mktemp("source")
    with torch.no_grad():
        for tensor in weights(gpt).values():
            tensor.mul_(3)  # logits that tell one token from another
    tokenizer = BytesTokenizer()
    huggingface.write(Pretrained("made", gpt.config, 32, weights(gpt), tokenizer), folder, torch.float32)
    return folder


def tensors(change):
    def fault(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return fault


def settings(name, **values):
    def fault(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return fault


def transposed(found):
    name = "transformer.h.1.attn.c_proj.weight"
    found[name] = found[name].t().contiguous()


def swapped_layers(found):
    for name in [name for name in found if ".h.0." in name]:
        other = name.replace(".h.0.", ".h.1.")
        found[name], found[other] = found[other], found[name]


def one_value(found):
    found["transformer.h.0.mlp.c_fc.weight"][3, 4] += 1e-3


def missing(found):
    del found["transformer.h.1.ln_2.weight"]


def not_a_number(found):
    found["transformer.ln_f.bias"][0] = float("nan")


def untied(folder):
    settings("config.json", tie_word_embeddings=False)(folder)
    tensors(lambda found: found.update({"lm_head.weight": found["transformer.wte.weight"].flip(0)}))(folder)


def wrong_id(folder):
    """Two ids that the text does not have change places."""
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"]
    one, other = (next(name for name, i in vocabulary.items() if i == wanted) for wanted in (0xC0, 0xC1))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(stored), encoding="utf-8")


def another_cut(folder):
    """The vocabulary is right, the text is changed on the way to it."""
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(stored), encoding="utf-8")


FAULTS = {
    "transposed": (tensors(transposed), "logits differ"),
    "swapped layers": (tensors(swapped_layers), "logits differ"),
    "one value": (tensors(one_value), "logits differ"),
    "a missing tensor": (tensors(missing), "logits differ"),
    "not a number": (tensors(not_a_number), "logits differ"),
    "another activation": (settings("config.json", activation_function="gelu"), "logits differ"),
    "an untied head": (untied, "logits differ"),
    "another epsilon": (settings("config.json", layer_norm_epsilon=1e-4), "logits differ"),
    "another depth": (settings("config.json", n_layer=1), "logits differ"),
    "broken": (settings("config.json", n_embd=33), "cannot be loaded"),
    "early end": (settings("generation_config.json", eos_token_id=list(range(200))), "continues otherwise"),
    "a wrong token id": (wrong_id, "the tokenizer has"),
    "another cut": (another_cut, "the tokenizer gives"),
}


def planted(monkeypatch, to, fault):
    target = export.TARGETS[to]

    def write(pretrained, folder, dtype):
        target.write(pretrained, folder, dtype)
        fault(folder)

    monkeypatch.setitem(export.TARGETS, to, replace(target, write=write))


def refused(overnight, source, to, folder, message):
    done = overnight("export", source, "--to", to, "--out", folder / "out", check=False)
    assert done.returncode == 1 and message in done.stderr, done.stdout + done.stderr
    assert done.stderr.startswith("overnight: nothing is exported: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and list(folder.iterdir()) == []


def test_without_a_fault_it_passes(overnight, source, tmp_path):
    overnight("export", source, "--to", "hf", "--out", tmp_path / "out")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(overnight, source, tmp_path, monkeypatch, name):
    fault, message = FAULTS[name]
    planted(monkeypatch, "hf", fault)
    refused(overnight, source, "hf", tmp_path, message)


@pytest.mark.parametrize("name", ["swapped layers", "a wrong token id", "another cut"])
def test_without_transformers_it_reloads_by_itself(overnight, source, tmp_path, monkeypatch, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name))
    said = overnight("export", source, "--to", "hf", "--out", tmp_path / "good").stdout
    assert "reloaded by overnight itself" in said
    (tmp_path / "folder").mkdir()
    planted(monkeypatch, "hf", FAULTS[name][0])
    refused(overnight, source, "hf", tmp_path / "folder", FAULTS[name][1])


@pytest.mark.parametrize("to", ["nanogpt", "llm.c"])
@pytest.mark.parametrize("change", [transposed, swapped_layers, one_value])
def test_other_formats_are_reloaded_too(overnight, source, tmp_path, monkeypatch, to, change):
    if to == "nanogpt":
        source = shutil.copytree(source, tmp_path / "exact")
        settings("config.json", activation_function="gelu")(source)
    (tmp_path / "folder").mkdir()
    overnight("export", source, "--to", to, "--out", tmp_path / "good")

    def weights_with_a_fault(gpt):
        found = {f"transformer.{name}": tensor.clone() for name, tensor in weights(gpt).items()}
        change(found)
        return {name.removeprefix("transformer."): tensor for name, tensor in found.items()}

    monkeypatch.setattr(nanogpt if to == "nanogpt" else names, "weights", weights_with_a_fault)
    refused(overnight, source, to, tmp_path / "folder", "logits differ")
