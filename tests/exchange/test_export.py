"""What is exported gives transformers, nanoGPT and llm.c the model that was trained."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from gpts import GPT2_SHAPES, logits, nanogpt_checkpoint, oracle, random_gpt, tokens
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import overnight
from overnight import checkpoint, optim
from overnight.exchange import export, huggingface, llmc, nanogpt, sources
from overnight.model import weights
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder
from overnight.tokenizers.gpt2 import GPT2Tokenizer

NARROW = [  # the tanh GELU of GPT-2, at a length that 200 tokens fit into
    *("--data.sequence-length", "256", "--train.tokens-per-step", "256", "--model.activation", "gelu_tanh"),
    *("--eval.every", "50", "--eval.tokens", "300", "--sample.every", "0", "--checkpoint.every", "0"),
]
TOKENIZERS = ["gpt2", "bpe:300", "bytes", "chars"]


def pretrained(gpt, tokenizer=None) -> Pretrained:
    return Pretrained("made", gpt.config, gpt.block_size, weights(gpt), tokenizer)


def loaded(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@pytest.fixture(scope="module")
def trained(overnight, tiny, tmp_path_factory):
    """A run of 50 steps for each tokenizer, and its export for transformers."""
    folder = tmp_path_factory.mktemp("trained")
    text = Path(json.__file__).read_text(encoding="utf-8") + "naïve 日本語 😀\n"
    (folder / "text.txt").write_text(text * 3, encoding="utf-8")
    found = {}
    for name in TOKENIZERS:
        data, run, out = (folder / f"{kind}-{name.partition(':')[0]}" for kind in ("data", "run", "out"))
        overnight("prepare", "files", folder / "text.txt", "--out", data, "--tokenizer", name, "--workers", "1")
        overnight("train", "gpt2-tiny", "--data", data, "--out", run, *tiny, *NARROW, "--train.steps", "50")
        said = overnight("export", run, "--to", "hf", "--out", out).stdout
        assert "reloaded by transformers" in said and "3 of 3 greedy continuations equal" in said
        found[name] = run, out
    return found


@pytest.mark.parametrize(
    ("shape", "bias", "activation"),
    [
        ("gpt2", False, "gelu"),
        ("gpt2", True, "gelu_tanh"),
        ("gpt2-medium", False, "gelu_tanh"),
        ("gpt2-large", True, "gelu"),
        ("gpt2-xl", True, "gelu_tanh"),
    ],
)
def test_the_four_shapes_of_gpt2_in_transformers(shape, bias, activation, tmp_path):
    n_layer, n_head = GPT2_SHAPES[shape]
    gpt = random_gpt(bias, activation, n_layer=n_layer, n_head=n_head, n_embd=4 * n_head)
    huggingface.write(pretrained(gpt), tmp_path, torch.float32)
    assert (logits(gpt, tokens(97)) - logits(loaded(tmp_path), tokens(97))).abs().max() < 1e-5


@pytest.mark.parametrize("name", GPT2_SHAPES)
@pytest.mark.parametrize(("bias", "activation", "vocab_size"), [(True, "gelu_new", 97), (False, "gelu", 131)])
def test_in_and_out_again(name, bias, activation, vocab_size, tmp_path):
    """The same logits after each crossing; what has no biases comes from nanoGPT, since transformers has none such."""
    n_layer, n_head = GPT2_SHAPES[name]
    ids, shape = tokens(vocab_size, 8), {"n_layer": n_layer, "n_head": n_head, "n_embd": 4 * n_head}
    if bias:
        made = oracle(**shape, vocab_size=vocab_size, activation_function=activation, n_positions=8)
        made.save_pretrained(tmp_path / "in")
        source = tmp_path / "in"
    else:
        made = random_gpt(False, activation, vocab_size, 8, **shape)
        source = nanogpt_checkpoint(made, tmp_path / "ckpt.pt")
    first = logits(made, ids)
    own = sources.read(str(source))
    assert own.model.bias is bias
    export.export(str(source), "hf", tmp_path / "out")
    out = sources.read(str(tmp_path / "out"))
    for again in (own.build(), loaded(tmp_path / "out"), out.build()):
        assert (logits(again, ids) - first).abs().max() < 1e-5


@pytest.mark.parametrize("vocab_size", [1, 63, 65, 50257, 50304])
def test_the_rows_of_the_vocabulary(vocab_size, tmp_path):
    """Ours are padded in memory, and those rows stay behind; what another program trained as padding is kept."""
    gpt = random_gpt(n_embd=8, vocab_size=vocab_size)
    tokenizer = GPT2Tokenizer() if vocab_size > 50000 else None
    huggingface.write(pretrained(gpt, tokenizer), tmp_path, torch.float32)
    model = loaded(tmp_path)
    assert model.config.vocab_size == vocab_size
    ids = tokens(vocab_size)
    assert (logits(gpt, ids) - logits(model, ids)).abs().max() < 1e-5
    if vocab_size == 50304:
        with torch.no_grad():  # the likeliest now is a row that stands for no token
            model.transformer.wte.weight[50300] = 100 * model.transformer.wte.weight[50300].sign()
            model.transformer.wte.weight[50301] = -model.transformer.wte.weight[50300]
        assert int(model.generate(ids[:1, :4], attention_mask=torch.ones(1, 4), max_new_tokens=1)[0, -1]) < 50257


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_trained_model_gives_the_same_logits(trained, name):
    run, out = trained[name]
    model = overnight.load(run, device="cpu")
    ids = tokens(model.tokenizer.vocab_size, 256)
    assert (model(ids) - logits(loaded(out), ids)).abs().max() < 1e-5
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_greedy_generation_is_that_of_sample(trained, name, request):
    run, out = trained[name]
    model, auto = loaded(out), AutoTokenizer.from_pretrained(out, local_files_only=True)
    prompt = "def "
    given = auto(prompt, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=200)[0]
    own = list(overnight.load(run, device="cpu").stream(prompt, 200, temperature=0))
    assert [i for i in ids[given["input_ids"].shape[1] :].tolist() if i != auto.eos_token_id] == own
    command = request.getfixturevalue("overnight")
    said = command("sample", run, "--prompt", prompt, "--temperature", "0", "--device", "cpu").stdout
    assert said == auto.decode(ids, skip_special_tokens=True) + "\n"
    again = command("sample", out, "--prompt", prompt, "--temperature", "0", "--device", "cpu").stdout
    assert again == said  # the export is read back


@pytest.mark.parametrize("name", TOKENIZERS)
def test_past_the_context_each_token_is_the_likeliest_after_those_before(trained, name):
    """There transformers' generate raises an error; its model on the last 256 tokens gives the tokens of `sample`."""
    run, out = trained[name]
    model, auto, own = loaded(out), AutoTokenizer.from_pretrained(out, local_files_only=True), overnight.load(run)
    ids = torch.tensor([*auto("def ")["input_ids"], *own.stream("def ", 300, temperature=0)])
    assert len(ids) > 256 + 40
    windows = ids.unfold(0, 256, 8)[:-1]  # each eighth step
    following = logits(model, windows)[:, -1, : own.tokenizer.vocab_size].argmax(-1)
    assert torch.equal(following, ids[256::8][: len(following)])


def test_the_special_ids(trained):
    for name, end in (("gpt2", 50256), ("bpe:300", 299), ("bytes", 256), ("chars", None)):
        model = loaded(trained[name][1])
        for found in (model.config.eos_token_id, model.config.bos_token_id, model.generation_config.eos_token_id):
            assert found == end
        assert model.generation_config.pad_token_id == end and not model.generation_config.do_sample


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(trained, dtype, tmp_path):
    run, _ = trained["bytes"]
    certificate = export.export(str(run), "hf", tmp_path / "half", dtype=dtype)
    changes = certificate["logits"]["rounding_to_dtype_changes_up_to"]
    assert 0 < changes < 0.1
    page = (tmp_path / "half" / "README.md").read_text(encoding="utf-8")
    assert f"as it was trained differ by up to {changes:.1e}, by rounding to {dtype}." in page
    assert loaded(tmp_path / "half").dtype == getattr(torch, dtype)
    own, read = sources.read(str(run)).tensors, sources.read(str(tmp_path / "half")).tensors
    assert all(torch.equal(own[name].to(getattr(torch, dtype)).float(), tensor) for name, tensor in read.items())


def test_the_certificate(trained):
    run, out = trained["gpt2"]
    found = json.loads((out / "certificate.json").read_text())
    assert found["logits"]["tokens"] >= 1000 and found["logits"]["largest_difference"] < 1e-9
    assert (found["continuations"]["equal"], found["continuations"]["tokens"]) == (3, [50, 50, 50])
    assert found["tokenizer"]["ids_compared"] > 1000 and found["runtime"]["name"] == "transformers"
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "certificate.json"}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        name: described["sha256"] for name, described in found["files"].items()
    }
    step = found["source"]["step"]
    weights_file = run / "checkpoints" / checkpoint.folder_name(step) / "model.safetensors"
    assert found["source"]["files"] == {"model.safetensors": hashlib.sha256(weights_file.read_bytes()).hexdigest()}
    assert "validation split" in json.loads((trained["bytes"][1] / "certificate.json").read_text())["text"]


def test_the_model_card(trained):
    run, out = trained["bytes"]
    content = (out / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "unknown",
        "transformers",
        "text-generation",
    )
    assert yaml.safe_load(content.split("---")[1])["tags"] == ["gpt2", "overnight"]
    state = checkpoint.read_state(checkpoint.find(run / "checkpoints", "best"))
    manifest = json.loads((run.parent / "data-bytes" / "manifest.json").read_text())
    parameters = sum(tensor.numel() for tensor in sources.read(str(run)).tensors.values())
    for fact in (f"{parameters:,}", f"{state.tokens:,}", f"{state.val_loss:.4f}", manifest["fingerprint"]):
        assert f" {fact} " in content
        assert str(run.parent) not in content and "None" not in content and "nan" not in content.split()


def test_the_dataset_may_be_gone(overnight, trained, tmp_path):
    run = shutil.copytree(trained["bytes"][0], tmp_path / "run")
    attempts = (run / "attempts.jsonl").read_text()
    (run / "attempts.jsonl").write_text(attempts.replace("data-bytes", "data-gone"))
    overnight("export", run, "--to", "hf", "--out", tmp_path / "out", "--licence", "mit")
    found = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert found["text"] == "generated by the model itself" and found["logits"]["tokens"] >= 1000
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_names_data_sets_of_the_hub(overnight, trained, tmp_path):
    before = trained["bytes"][0].parent
    run, data = (shutil.copytree(before / name, tmp_path / name) for name in ("run-bytes", "data-bytes"))
    manifest = json.loads((data / "manifest.json").read_text())
    found = {"name": "hf:someone/text", "repo": "someone/text", "revision": "c0ffee", "licence": "odc-by"}
    (data / "manifest.json").write_text(json.dumps(manifest | {"sources": [found]}))
    attempts = (run / "attempts.jsonl").read_text()
    (run / "attempts.jsonl").write_text(attempts.replace(str(before), str(tmp_path)))
    overnight("export", run, "--to", "hf", "--out", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.datasets == ["someone/text"]
    assert "| source | hf:someone/text, revision c0ffee, licence odc-by |" in card.text


def test_from_one_format_to_another(overnight, tmp_path):
    """Weights that are no run's: what is not known of them is not said."""
    oracle(vocab_size=97).save_pretrained(tmp_path / "theirs")
    overnight("export", tmp_path / "theirs", "--to", "llm.c", "--out", tmp_path / "llmc")
    overnight("export", tmp_path / "llmc" / "model.bin", "--to", "hf", "--out", tmp_path / "again")
    theirs, again = loaded(tmp_path / "theirs"), loaded(tmp_path / "again")
    assert torch.equal(logits(theirs, tokens(97)), logits(again, tokens(97)))
    card = (tmp_path / "again" / "README.md").read_text()
    assert "## Training" not in card and "tokenizer | unknown" in card
    assert not (tmp_path / "again" / "tokenizer.json").exists()


# ---- nanoGPT


@pytest.fixture(scope="module")
def exact(overnight, tiny, dataset, tmp_path_factory):
    """A run with the exact GELU, which nanoGPT has."""
    run = tmp_path_factory.mktemp("exact") / "run"
    options = ["--model.activation", "gelu", "--model.no-bias", "--eval.every", "12", "--checkpoint.every", "0"]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", run, *tiny, *options)
    return run


def test_nanogpt_goes_on_with_the_optimizers_moments(overnight, exact, tmp_path):
    """One more step with nanoGPT's optimizer on its checkpoint is that of ours on our own."""
    overnight("export", exact, "--to", "nanogpt", "--out", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert content["iter_num"] == 12 and 0 < content["best_val_loss"] < 10
    assert content["model_args"] == {
        **{"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32},
        **{"bias": False, "vocab_size": 257, "dropout": 0.0},
    }

    recipe, folder = RunFolder.open(exact).config().recipe, checkpoint.find(exact / "checkpoints", "last")
    gpt = sources.read(str(exact), "last").build()
    ours = optim.make_optimizer(gpt, recipe.optim)
    state = checkpoint.read_state(folder).optimizer
    optim.load_optimizer_state(ours, gpt, checkpoint.load_tensors(folder, checkpoint.OPTIMIZER), state)

    named = {
        name: value.clone().requires_grad_() for name, value in content["model"].items() if name != "lm_head.weight"
    }
    groups = [[p for p in named.values() if p.dim() >= 2], [p for p in named.values() if p.dim() < 2]]
    theirs = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.3}, {"params": groups[1], "weight_decay": 0.0}], lr=1.0
    )
    theirs.load_state_dict(content["optimizer"])
    generator = torch.Generator().manual_seed(0)
    own = dict(gpt.named_parameters())
    for name, value in named.items():
        gradient = torch.randn(value.shape, generator=generator)
        target = own[name.removeprefix("transformer.")]
        target.grad = torch.zeros_like(target)
        target.grad[: len(gradient)] = value.grad = gradient
    for optimizer in (ours, theirs):
        optim.set_learning_rate(optimizer, 1e-3)
        optimizer.step()
    for name, value in named.items():
        after = own[name.removeprefix("transformer.")].detach()[: len(value)]
        assert not torch.equal(after, content["model"][name])
        torch.testing.assert_close(after, value.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_other_moments_are_found(overnight, exact, tmp_path, monkeypatch, key):
    target = export.TARGETS["nanogpt"]

    def write(model, folder, dtype):
        target.write(model, folder, dtype)
        content = torch.load(folder / "ckpt.pt", weights_only=True)
        content["optimizer"]["state"][3][key] += 1e-3
        torch.save(content, folder / "ckpt.pt")

    monkeypatch.setitem(export.TARGETS, "nanogpt", replace(target, write=write))
    done = overnight("export", exact, "--to", "nanogpt", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and "moments are others" in done.stderr and not (tmp_path / "out").exists()


def test_what_was_frozen_has_no_moments_in_nanogpt(overnight, tiny, dataset, tmp_path):
    options = ["--model.activation", "gelu", "--optim.frozen", "wpe.*,ln_f.bias", "--train.steps", "2"]
    overnight(
        "train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, *options, "--sample.every", "0"
    )
    overnight("export", tmp_path / "run", "--to", "nanogpt", "--out", tmp_path / "out")
    stored = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)["optimizer"]
    matrices, vectors = (group["params"] for group in stored["param_groups"])
    assert (len(matrices), len(vectors)) == (10, 18)
    assert set(matrices + vectors) - set(stored["state"]) == {1, vectors[-1]}  # wpe.weight and ln_f.bias


def test_nanogpts_gelu_in_place_of_the_tanh_form(overnight, trained, tmp_path):
    run, out = trained["bytes"][0], tmp_path / "out"
    said = overnight("export", run, "--to", "nanogpt", "--out", out, "--approximate-gelu").stdout
    changes = json.loads((out / "certificate.json").read_text())["logits"]["rounding_to_dtype_changes_up_to"]
    assert f"note: with the other form of GELU the model's own logits change by up to {changes:.1e}" in said
    assert "the optimizer's moments come along" in said
    one, other = sources.read(str(run)).build(), nanogpt.read(out / "ckpt.pt").build()
    assert other.config.activation == "gelu"
    ids = tokens(257, 256)
    assert 0 < (logits(one, ids) - logits(other, ids)).abs().max() < 5 * changes < 0.1


def test_nanogpt_without_moments_begins_anew(overnight, tmp_path):
    oracle(activation_function="gelu").save_pretrained(tmp_path / "theirs")
    overnight("export", tmp_path / "theirs", "--to", "nanogpt", "--out", tmp_path / "out", "--dtype", "bfloat16")
    content = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert content["optimizer"]["state"] == {} and len(content["optimizer"]["param_groups"]) == 2
    assert {value.dtype for value in content["model"].values()} == {torch.bfloat16}
    assert nanogpt.read(tmp_path / "out" / "ckpt.pt").model.activation == "gelu"


def test_nanogpt_finds_the_characters(overnight, tiny, tmp_path):
    """meta.pkl is read back; other tokenizers have no way into nanoGPT's sample.py but their number of ids."""
    (tmp_path / "text.txt").write_text("to be, or not to be\n" * 200)
    overnight("prepare", "files", tmp_path / "text.txt", "--out", tmp_path / "data", "--tokenizer", "chars")
    options = ["--model.activation", "gelu", "--train.steps", "2", "--sample.every", "0"]
    overnight("train", "gpt2-tiny", "--data", tmp_path / "data", "--out", tmp_path / "run", *tiny, *options)
    said = overnight("export", tmp_path / "run", "--to", "nanogpt", "--out", tmp_path / "out").stdout
    assert "tokenizer: 9 ids" in said
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert [meta["stoi"][c] for c in "to be"] == list(sources.read(str(tmp_path / "run")).tokenizer.encode("to be"))
    assert torch.load(tmp_path / "out" / "ckpt.pt")["config"] == {"dataset": "overnight-chars"}
    assert "data/overnight-chars/meta.pkl" in (tmp_path / "out" / "README.md").read_text()


# ---- llm.c


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llmc_has_biases_and_a_padded_vocabulary(dtype, tmp_path):
    gpt = random_gpt(bias=False, activation="gelu_tanh", vocab_size=130)
    huggingface.write(pretrained(gpt), tmp_path, torch.float32)
    export.export(str(tmp_path), "llm.c", tmp_path / "out", dtype=dtype)
    path = tmp_path / "out" / "model.bin"
    header = torch.frombuffer(bytearray(path.read_bytes()[:32]), dtype=torch.int32).tolist()
    assert header == [20240326, {"float32": 3, "bfloat16": 5}[dtype], 32, 130, 2, 4, 32, 256]
    read = llmc.read(path)
    assert read.tensors["h.1.mlp.c_fc.bias"].count_nonzero() == 0
    rounded = pretrained(gpt).tensors["h.1.attn.c_attn.weight"].to(getattr(torch, dtype)).float()
    assert torch.equal(read.tensors["h.1.attn.c_attn.weight"], rounded)


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "nanogpt"], "--approximate-gelu; `--to hf` keeps it"),
        (["--to", "nanogp"], "did you mean nanogpt"),
        (["--to", "hf", "--dtype", "fp8"], "float32, bfloat16, float16"),
        (["--to", "llm.c", "--dtype", "float16"], "float32, bfloat16"),
        (["--to", "hf", "--licence", "my own: do as you like"], "--licence"),
        (["--to", "hf", "--checkpoint", "3"], "no checkpoint '3'"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(overnight, trained, tmp_path, flags, message):
    done = overnight("export", trained["bytes"][0], *flags, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_exact_gelu_is_not_llmcs(overnight, exact, tmp_path):
    done = overnight("export", exact, "--to", "llm.c", "--out", tmp_path / "out", check=False)
    assert done.returncode == 2 and "`--to hf` keeps it" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_as_it_is(overnight, trained, tmp_path):
    (tmp_path / "mine").write_text("mine")
    done = overnight("export", trained["bytes"][0], "--to", "hf", "--out", tmp_path, check=False)
    assert done.returncode == 2 and "exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class Raises:
    """A program that reads the files, and then cannot use them."""

    name = "another program"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def logits(self, ids):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            RuntimeError("mat1 and mat2\n  cannot be multiplied"),
            1,
            "another program fails on what was written: mat1 and",
        ),
        (MemoryError(), 1, "fails on what was written: MemoryError"),
        (OSError("no file named\npytorch_model.bin"), 1, "written: no file named pytorch_model.bin"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_another_program_raises_is_one_line(overnight, trained, tmp_path, monkeypatch, error, code, message):
    target = replace(export.TARGETS["hf"], reload=lambda *_: Raises(error))
    monkeypatch.setitem(export.TARGETS, "hf", target)
    done = overnight("export", trained["bytes"][0], "--to", "hf", "--out", tmp_path / "out", check=False)
    assert (done.returncode, done.stdout) == (code, "") and len(done.stderr.splitlines()) == 1
    assert message in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["hf", "nanogpt"])
def test_a_context_of_one_token(overnight, to, tmp_path):
    oracle(n_positions=1, activation_function="gelu").save_pretrained(tmp_path / "theirs")
    said = overnight("export", tmp_path / "theirs", "--to", to, "--out", tmp_path / "out").stdout
    assert "logits of 1,000 tokens" in said and "no room for a continuation" in said
    assert "greedy" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", export.TARGETS)
def test_a_file_that_may_not_grow_leaves_nothing(overnight, trained, tmp_path, to):
    """The system refuses in the middle of the weights; each library that writes them tells that in its own way."""
    resource = pytest.importorskip("resource")
    flags = ["--approximate-gelu"] if to == "nanogpt" else []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        arguments = ["export", trained["bytes"][0], "--to", to, "--out", tmp_path / "out", *flags]
        done = overnight(*arguments, check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'out'} cannot be written: " in done.stderr and list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(overnight, trained, tmp_path, monkeypatch):
    def full(pretrained, folder, dtype):
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setitem(export.TARGETS, "hf", export.Target(full, export.TARGETS["hf"].reload))
    done = overnight("export", trained["bytes"][0], "--to", "hf", "--out", tmp_path / "out", check=False)
    assert done.returncode == 2 and "No space left" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
