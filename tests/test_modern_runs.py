"""Whole runs of the modern model from the command line, and what comes after them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import overnight as package
from overnight.errors import UserError
from overnight.exchange import huggingface
from overnight.model import LanguageModel, weights
from overnight.pretrained import Pretrained
from overnight.runs import read_lines
from running import Overnight
from test_modern import BIGRAMS, TINY, random_tokens
from test_modern import tiny as made_up
from test_training import without_times

PRESET = "modern-shakespeare"
FLAGS = ["--model.dropout", "0.1", "--model.bigram-rows", "999", "--checkpoint.keep-last", "9"]


@pytest.fixture(scope="module")
def run(overnight: Overnight, dataset: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("modern") / "run"
    overnight("train", PRESET, "--data", dataset, "--out", out, *tiny, *FLAGS)
    return out


@pytest.fixture(scope="module")
def exported(overnight: Overnight, run: Path) -> tuple[Path, str]:
    said = overnight("export", run, "--to", "hf", "--out", run.parent / "hf").stdout
    return run.parent / "hf", said


def test_killed_and_started_again_it_ends_with_the_same_bits(
    overnight: Overnight, dataset: Path, tiny: list[str], run: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(run, tmp_path / "again")
    for step in (8, 12):
        shutil.rmtree(again / "checkpoints" / f"step_{step:08}")
    overnight("train", PRESET, "--data", dataset, "--out", again, *tiny, *FLAGS)
    for file in ("model.safetensors", "optimizer.safetensors"):
        last = Path("checkpoints", "step_00000012", file)
        assert (again / last).read_bytes() == (run / last).read_bytes()
    lines = [without_times(read_lines(folder / "metrics.jsonl")) for folder in (run, again)]
    assert lines[0] == lines[1]


def test_it_learns_samples_evaluates_and_reports(overnight: Overnight, run: Path, tmp_path: Path) -> None:
    losses = [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert len(read_lines(run / "samples.jsonl")) > 1
    texts = [
        overnight("sample", run, "--prompt", "def ", "--max-new-tokens", "60", "--temperature", "0", *more).stdout
        for more in ([], ["--no-cache"])
    ]
    assert texts[0] == texts[1] and texts[0].startswith("def ")
    row = {
        **{"ind": 1, "activity_label": "Baking", "ctx_a": "A cook", "ctx_b": "the cook", "ctx": "A cook the cook"},
        **{"split": "val", "split_type": "indomain", "label": 1, "source_id": "activitynet~x"},
        "endings": ["breaks.", "counts.", "sings a song.", "goes."],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = json.loads(overnight("eval", run, "--evals", f"hellaswag={tmp_path / 'rows.jsonl'}", "--json").stdout)
    assert found["tasks"][0]["metrics"]["acc"] in (0.0, 1.0)
    assert "relu2" in overnight("report", run).stdout + (run / "report.html").read_text(encoding="utf-8")
    said = overnight("inspect", run, "--out", tmp_path / "page.html").stdout
    assert "h.1.attn.value_mix" in said and "value embeddings" in said and "warning" not in said
    assert "lm_head.weight" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_another_run_starts_from_it(
    overnight: Overnight, dataset: Path, tiny: list[str], run: Path, tmp_path: Path
) -> None:
    """With a shorter sequence; the shape is the first run's, the optimizer the preset's own."""
    shape = ("--model.n-layer", "--model.n-embd", "--model.n-head")
    flags = [word for at, word in enumerate(tiny) if not {*tiny[max(0, at - 1) : at + 1]} & {*shape}]
    flags += ["--data.sequence-length", "16", "--train.steps", "2", "--init-from", str(run)]
    overnight("train", "finetune-shakespeare", "--data", dataset, "--out", tmp_path / "out", *flags)
    first, second = (
        load_file(folder / "checkpoints" / step / "model.safetensors")
        for folder, step in ((run, "step_00000012"), (tmp_path / "out", "step_00000002"))
    )
    assert first.keys() == second.keys()
    assert all(torch.allclose(value, second[name], rtol=0, atol=0.01) for name, value in first.items())


# ---- for transformers


def test_the_export_is_the_model_in_transformers(exported: tuple[Path, str], run: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, said = exported
    assert "reloaded by transformers" in said and "3 of 3 greedy continuations equal" in said
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=True
    ).eval()
    own = package.load(run, device="cpu")
    ids = torch.tensor([[*b"import json as text\n"]])
    with torch.no_grad():
        assert (theirs(ids).logits - own(ids)).abs().max() < 1e-5
        padded = torch.cat((ids, torch.nn.functional.pad(ids[:, :-5], (5, 0))))
        mask = torch.ones_like(padded)
        mask[1, :5] = 0
        beside = theirs(padded, attention_mask=mask).logits[1, 5:]
        assert (beside - own(ids[:, :-5])[0]).abs().max() < 1e-5
        loss = theirs(ids, labels=ids).loss
        expected = torch.nn.functional.cross_entropy(own(ids)[0, :-1], ids[0, 1:])
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(ValueError, match="at most 32"):
        theirs(torch.zeros(1, 33, dtype=torch.int64))


def test_its_card_and_its_code(exported: tuple[Path, str]) -> None:
    folder, _ = exported
    card = (folder / "README.md").read_text(encoding="utf-8")
    for fact in ("rotary", "ReLU^2", "Muon on the matrices", "999 rows", "trust_remote_code=True", "custom_code"):
        assert fact in card
    assert "GPT-2" not in card
    code = (folder / "modeling_overnight.py").read_text(encoding="utf-8")
    assert "MIT License" in code and "import overnight" not in code and "from overnight" not in code
    described = json.loads((folder / "certificate.json").read_text())["files"]
    assert "modeling_overnight.py" in described


def test_its_folder_is_read_back_and_its_code_is_not_run(exported: tuple[Path, str], run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "folder")
    planted = tmp_path / "planted"
    (folder / "modeling_overnight.py").write_text(f"open({str(planted)!r}, 'w')\n")
    ids = torch.tensor([[*b"import json"]])
    read, own = package.load(folder, device="cpu"), package.load(run, device="cpu")
    assert torch.equal(read(ids), own(ids)) and read.tokenizer.name == own.tokenizer.name
    assert not planted.exists()


@BIGRAMS
def test_any_size_of_the_table_of_pairs_goes_out_and_comes_back(rows: int, tmp_path: Path) -> None:
    model = tiny_model(rows)
    made = Pretrained("made", model.config, model.block_size, weights(model))
    huggingface.write(made, tmp_path, torch.float32)
    found = huggingface.read(tmp_path)
    assert found.model == made.model and found.block_size == made.block_size
    ids = random_tokens(2, 9)
    assert torch.equal(found.build()(ids), model(ids))


def tiny_model(rows: int = 61) -> LanguageModel:
    return made_up(replace(TINY, bigram_rows=rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 7.5}, "softcap is 7.5"),
        ({"rotary_base": None}, "rotary_base is None"),
        ({"n_layer": 4}, "n_layer is 4, but the tensors have 3"),
        ({"n_embd": 16}, "n_embd is 16"),
        ({"bigram_rows": 0}, "bigram_rows is 0"),
        ({"n_head": 3}, "3 heads"),
        ({"n_head": None}, "None heads"),
        ({"n_positions": 10**12}, "n_positions"),
        ({"model_type": "other"}, "only 'gpt2' and 'overnight_modern'"),
    ],
)
def test_a_folder_that_is_another_model_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    model = tiny_model()
    huggingface.write(Pretrained("made", model.config, 9, weights(model)), tmp_path, torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        huggingface.read(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    huggingface.write(Pretrained("made", model.config, 9, weights(model)), tmp_path, torch.float32)
    good = load_file(tmp_path / "model.safetensors")
    for change, message in (
        ({"h.0.c_fc.weight": torch.zeros(3, 8)}, "h.0.c_fc.weight"),
        ({"more": torch.zeros(1)}, "unknown tensor 'more'"),
        ({"wte.weight": torch.zeros(50)}, "wte.weight"),
        ({"lm_head.weight": torch.zeros(50, 8, dtype=torch.int8)}, "quantized"),
    ):
        save_file({**good, **change}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=message):
            huggingface.read(tmp_path).build()


@pytest.mark.parametrize("to", ["nanogpt", "llm.c", "gguf"])
def test_what_has_no_place_for_it_refuses_in_one_line(overnight: Overnight, run: Path, to: str, tmp_path: Path) -> None:
    done = overnight("export", run, "--to", to, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "model.block is modern" in done.stderr and "--to hf" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gpt2_whose_matrices_muon_trained_goes_to_nanogpt_without_moments(
    overnight: Overnight, dataset: Path, tiny: list[str], tmp_path: Path
) -> None:
    flags = ["--optim.matrices", "muon", "--model.activation", "gelu", "--train.steps", "2", "--sample.every", "0"]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, *flags)
    said = overnight("export", tmp_path / "run", "--to", "nanogpt", "--out", tmp_path / "out").stdout
    assert "moments stay behind: the matrices were trained by Muon" in said
    content = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert not content["optimizer"]["state"]
    assert "Muon on the matrices" in (tmp_path / "out" / "README.md").read_text()
