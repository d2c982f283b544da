"""Parameters and floating-point operations, against nanoGPT's formula and against torch's own count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from overnight import sizes
from overnight.config import ModelConfig
from overnight.model import without_memory


def test_gpt2_has_the_operations_of_nanogpts_estimate() -> None:
    model = without_memory(ModelConfig(vocab_size=50_304), 1024)
    by_role = sizes.parameters(model)
    assert sum(by_role.values()) == 124_475_904
    n = 124_475_904 - 1024 * 768  # nanoGPT's get_num_params: all but the position embeddings
    assert sum(sizes.flops_per_token(model).values()) == 6 * n + 12 * 12 * 12 * 64 * 1024


def test_nothing_is_allocated() -> None:
    model = without_memory(ModelConfig(n_layer=96, n_embd=12_288, n_head=96, vocab_size=50_257), 2048)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(sizes.parameters(model).values()) > 1.7e11


MODERN = ModelConfig(n_layer=3, n_head=2, n_embd=64, vocab_size=512, block="modern", bias=False, activation="relu2")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (ModelConfig(n_layer=2, n_head=2, n_embd=128, vocab_size=1024), 64),
        (ModelConfig(n_layer=3, n_head=2, n_embd=64, vocab_size=128), 256),
        (MODERN, 128),  # what it looks up is not counted
    ],
)
def test_torch_counts_the_same_products(config: ModelConfig, length: int) -> None:
    model = without_memory(config, length).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    tokens = torch.zeros(2, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens, tokens).backward()
    # the formula also counts biases and norms, whose operations are no products
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(
        sum(sizes.flops_per_token(model).values()), rel=0.02
    )
