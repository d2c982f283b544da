"""What is measured, against numpy; every kind of source; what is wrong is said."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gpts import build_nanogpt_checkpoint, nanogpt_checkpoint, oracle, random_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from overnight.exchange import llmc, sources
from overnight.inspection.lines import lines
from overnight.inspection.measure import inspect, measure
from overnight.model import weights


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-25, 0.02, 1e25]),
)
def test_a_matrix_against_numpy(rows: int, columns: int, seed: int, scale: float) -> None:
    tensor = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    exact = tensor.numpy().astype(np.float64)
    values = np.linalg.svd(exact, compute_uv=False)
    found = measure("a", tensor)
    assert (found.shape, found.parameters, found.non_finite) == ((rows, columns), rows * columns, 0)
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert found.std == pytest.approx(exact.std(), rel=1e-12, abs=1e-12 * scale)
    assert found.max_abs == np.abs(exact).max()
    assert np.abs(np.array(found.spectrum) - values).max() <= 1e-7 * values[0]
    assert found.largest == pytest.approx(values[0], rel=1e-12)
    assert found.stable_rank == pytest.approx((np.linalg.norm(exact) / values[0]) ** 2, rel=1e-10)
    assert 1 - 1e-9 <= found.stable_rank <= min(rows, columns) + 1e-9


def test_a_tall_matrix_takes_the_same_way_as_a_wide_one() -> None:
    tall = torch.randn(3000, 20, generator=torch.Generator().manual_seed(0))
    assert measure("a", tall).spectrum == pytest.approx(measure("a", tall.T.contiguous()).spectrum, rel=1e-12)


def test_a_matrix_of_less_than_full_rank() -> None:
    found = measure("a", torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 5.0)))
    assert found.stable_rank == pytest.approx(1)
    assert found.largest is not None and found.smallest is not None
    assert 0 <= found.smallest < 1e-7 * found.largest
    zero = measure("a", torch.zeros(3, 4))
    assert (zero.norm, zero.std, zero.largest, zero.stable_rank) == (0, 0, 0, None)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (5,), (2, 3, 4)])
def test_what_is_no_matrix_has_no_singular_values(shape: tuple[int, ...]) -> None:
    found = measure("a", torch.ones(shape))
    assert (found.parameters, found.spectrum, found.stable_rank) == (math.prod(shape), (), None)
    assert found.norm == (math.sqrt(found.parameters) if found.parameters else None)


SOURCES = ("transformers", "nanogpt", "build-nanogpt", "llm.c")


def made(kind: str, folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """A model's files as another program writes them, and its tensors by our names."""
    gpt = random_gpt(activation="gelu" if kind == "nanogpt" else "gelu_tanh")
    named = weights(gpt)
    if kind == "transformers":
        model = oracle()
        model.save_pretrained(folder / "hf")
        return str(folder / "hf"), {"wte.weight": model.transformer.wte.weight.detach()}
    if kind == "nanogpt":
        return str(nanogpt_checkpoint(gpt, folder / "ckpt.pt")), named
    if kind == "build-nanogpt":
        return str(build_nanogpt_checkpoint(gpt, folder / "model_00003.pt")), named
    (folder / "model.bin").write_bytes(b"".join(llmc.to_bytes(named, 4, torch.float32)))
    return str(folder / "model.bin"), named


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_file(kind: str, tmp_path: Path, overnight) -> None:
    source, named = made(kind, tmp_path)
    text = overnight("inspect", source).stdout
    assert "2 layers, 4 heads, width 32, context 32, vocabulary 97" in text and "warning" not in text
    found = json.loads(overnight("inspect", source, "--json").stdout)
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    names = list(tensors)
    assert len(names) == 28 and found["problems"] == []
    assert names[:3] == ["wte.weight", "wpe.weight", "h.0.ln_1.weight"] and names[-2:] == ["ln_f.weight", "ln_f.bias"]
    assert found["parameters"] == sum(found["groups"].values()) == 32 * (97 + 32) + 2 * (12 * 32**2 + 13 * 32) + 64
    for name, tensor in named.items():
        exact = tensor.numpy().astype(np.float64)
        assert tensors[name]["shape"] == list(exact.shape)
        assert tensors[name]["norm"] == pytest.approx(np.linalg.norm(exact), rel=1e-9)
        if exact.ndim == 2:
            values = np.linalg.svd(exact, compute_uv=False)
            assert tensors[name]["largest_singular_value"] == pytest.approx(values[0], rel=1e-9)
            assert tensors[name]["smallest_singular_value"] == pytest.approx(values[-1], rel=1e-4)


def test_a_run(dataset: Path, tiny: list[str], tmp_path: Path, overnight) -> None:
    run = tmp_path / "run"
    overnight("train", "shakespeare-char-cpu", "--data", dataset, "--out", run, *tiny)
    early, last = (
        json.loads(overnight("inspect", run, "--checkpoint", which, "--json").stdout) for which in ("8", "last")
    )
    assert (early["step"], last["step"]) == (8, 12)
    assert early["tokenizer"] == {"name": "bytes", "vocab_size": 257}
    file = run / "checkpoints" / "step_00000012" / "model.safetensors"
    assert {tensor["name"] for tensor in last["tensors"]} == set(load_file(file))
    for tensor in last["tensors"]:
        assert tensor["norm"] == pytest.approx(load_file(file)[tensor["name"]].norm().item(), rel=1e-5)
    assert "step 12" in overnight("inspect", run, "--checkpoint", "last").stdout


def broken(folder: Path, change: dict[str, torch.Tensor], without: str = "") -> str:
    """transformers' folder of a small model with other tensors in it."""
    oracle().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != without}
    save_file({**tensors, **change}, file)
    return str(folder)


def test_values_that_are_not_finite_are_flagged(tmp_path: Path, overnight) -> None:
    bad = torch.ones(32, 128)
    bad[3, 4], bad[5, 6], bad[7, 8] = math.nan, math.inf, -math.inf
    source = broken(
        tmp_path, {"transformer.h.1.mlp.c_fc.weight": bad, "transformer.ln_f.bias": torch.full((32,), math.nan)}
    )
    text = overnight("inspect", source).stdout
    assert "warning: h.1.mlp.c_fc.weight: 3 of 4,096 values are not finite (NaN or infinity)" in text
    assert "warning: ln_f.bias: 32 of 32 values" in text and text.count("warning") == 2
    found = json.loads(overnight("inspect", source, "--json").stdout, parse_constant=pytest.fail)
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert found["non_finite"] == 35
    assert tensors["h.1.mlp.c_fc.weight"]["non_finite"] == 3
    assert tensors["h.1.mlp.c_fc.weight"]["norm"] is None


def test_a_tied_head_that_is_not_a_number_is_no_untied_one(tmp_path: Path, overnight) -> None:
    gpt = random_gpt()
    with torch.no_grad():
        gpt.wte.weight[3, 4] = math.nan
    text = overnight("inspect", nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt")).stdout
    assert "warning: wte.weight: 1 of 3,104 values are not finite" in text


def test_what_is_no_gpt2_is_listed_and_said(tmp_path: Path) -> None:
    change = {"transformer.h.1.ln_2.weight": torch.zeros(7), "transformer.\x1b[2J\nevil<b>": torch.zeros(2, 2, 2)}
    found = inspect(sources.read(broken(tmp_path, change, "transformer.h.0.ln_1.bias")))
    assert found.problems == (
        "h.0.ln_1.bias is missing",
        "h.1.ln_2.weight is (7,), expected (32,)",
        "\x1b[2J\nevil<b> is no part of a GPT-2",
    )
    shown = lines(found)
    assert all(line.isprintable() for line in shown)
    assert any(line.startswith("\ufffd[2J evil<b> ") for line in shown)


@pytest.mark.parametrize(
    "change",
    [
        {"transformer.wte.weight": torch.zeros(5)},
        {"transformer.wte.weight": torch.tensor(1.0)},
        {"transformer.wpe.weight": torch.tensor(1.0)},
        {"transformer.h.first.ln_1.weight": torch.zeros(32)},
        {"transformer.h.": torch.zeros(32)},
        {f"transformer.h.{'9' * 5000}.x": torch.zeros(32)},
    ],
)
def test_a_damaged_file_is_one_line(change: dict[str, torch.Tensor], tmp_path: Path, overnight) -> None:
    done = overnight("inspect", broken(tmp_path, change), check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and str(tmp_path) in done.stderr


def test_a_header_of_llmc_alone_is_one_line(tmp_path: Path, overnight) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<8i", llmc.MAGIC, 3, 8, 97, 2, 4, 32, 128) + bytes(992))
    done = overnight("inspect", tmp_path / "model.bin", check=False)
    assert done.returncode == 2 and "its header says" in done.stderr
