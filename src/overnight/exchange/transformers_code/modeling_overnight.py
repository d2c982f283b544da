# Copyright (c) 2026 The overnight authors. MIT License:
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
# documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
# rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
# persons to whom the Software is furnished to do so, subject to the following conditions:
#
# The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
# Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
# WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
# COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
# OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""The modern model of `overnight` for transformers: for AutoModelForCausalLM with trust_remote_code=True.

It has no cache: `generate` computes the whole text anew for each token.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OvernightConfig(PretrainedConfig):
    model_type = "overnight_modern"

    def __init__(
        self,
        n_layer=12,
        n_head=12,
        n_embd=768,
        n_positions=1024,
        vocab_size=50257,
        bigram_rows=0,
        bigram_factors=(1, 1),
        rotary_base=10_000.0,
        sharpness=1.0,
        softcap=None,
        **options,
    ):
        self.n_layer, self.n_head, self.n_embd = n_layer, n_head, n_embd
        self.n_positions, self.vocab_size = n_positions, vocab_size
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = n_embd, n_layer, n_head
        self.max_position_embeddings = n_positions
        self.bigram_rows, self.bigram_factors = bigram_rows, list(bigram_factors)
        self.rotary_base, self.sharpness, self.softcap = rotary_base, sharpness, softcap
        super().__init__(**{"tie_word_embeddings": False, "use_cache": False, **options})


def norm(x):
    """To a root mean square of 1, without a weight."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x, cos, sin):
    """Rotary position embedding of (B, n_head, T, head size)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    one, other = x.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(one * cos, other, sin), torch.addcmul(other * cos, one, -sin)), dim=-1)


class Attention(nn.Module):
    def __init__(self, config, has_values):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        if has_values:
            self.value_mix = nn.Parameter(torch.empty(1))
        self.n_head, self.size = config.n_head, config.n_embd // config.n_head
        self.scale = config.sharpness * self.size**-0.5

    def forward(self, x, values, turn, mask):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3 * self.n_head, self.size).transpose(1, 2).split(self.n_head, dim=1)
        q, k = rotate(norm(q), *turn), rotate(norm(k), *turn)
        if values is not None:
            values = values.view(B, T, self.n_head, self.size).transpose(1, 2).to(v.dtype)
            v = v + self.value_mix.to(v.dtype) * values
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config, has_values):
        super().__init__()
        self.stream_mix = nn.Parameter(torch.empty(1))
        self.attn = Attention(config, has_values)
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x, embedded, values, turn, mask):
        x = x + self.stream_mix * embedded
        x = x + self.attn(norm(x), values, turn, mask)
        return x + self.c_proj(F.relu(self.c_fc(norm(x))).square())


class OvernightForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OvernightConfig
    _no_split_modules = ("Block",)
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        width, layers = config.n_embd, range(config.n_layer)
        self.valued = [layer for layer in layers if layer % 2 == (config.n_layer - 1) % 2]
        self.wte = nn.Embedding(config.vocab_size, width)
        self.bigrams = nn.Embedding(config.bigram_rows, width) if config.bigram_rows else None
        self.values = nn.ModuleList(nn.Embedding(config.vocab_size, width) for _ in self.valued)
        self.h = nn.ModuleList(Block(config, layer in self.valued) for layer in layers)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """The weights are those of the files."""

    def get_input_embeddings(self):
        return self.wte

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **options):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, labels=None, **options):
        """Logits (B, T, vocab_size) of ids (B, T); with labels (-100: ignored) the mean loss of the next ids too.

        `attention_mask` (B, T) is 0 for padding, which may stand on either side.
        """
        T, most = input_ids.shape[1], self.config.n_positions
        if most < T:
            raise ValueError(f"{T} tokens, but the model sees at most {most}")
        before = F.pad(input_ids[:, :-1], (1, 0), value=-1)
        positions, mask = torch.arange(T, device=input_ids.device)[None], None
        if attention_mask is not None and not attention_mask.all():
            real = attention_mask.bool()
            positions = (real.cumsum(1) - 1).clamp_min(0)
            before = before.masked_fill(positions == 0, -1)
            causal = torch.ones(T, T, dtype=torch.bool, device=real.device).tril()
            mask = (causal & real[:, None, None, :]) | torch.eye(T, dtype=torch.bool, device=real.device)
        logits = self.logits(input_ids, before, positions, mask)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def logits(self, tokens, before, positions, mask):
        config = self.config
        size = config.n_embd // config.n_head
        frequencies = config.rotary_base ** (-torch.arange(0, size, 2, device=tokens.device) / size)
        angles = (positions[..., None] * frequencies)[:, None]
        turn = angles.cos(), angles.sin()
        x = self.wte(tokens)
        if self.bigrams is not None:
            first, second = config.bigram_factors
            if config.bigram_rows >= config.vocab_size**2:
                row = before * config.vocab_size + tokens
            else:
                row = (first * tokens ^ second * before) % config.bigram_rows
            x = x + self.bigrams(torch.where(before < 0, 0, row))
        x = embedded = norm(x)
        tables = dict(zip(self.valued, self.values, strict=True))
        for layer, block in enumerate(self.h):
            x = block(x, embedded, tables[layer](tokens) if layer in tables else None, turn, mask)
        logits = self.lm_head(norm(x))
        return logits if config.softcap is None else config.softcap * torch.tanh(logits / config.softcap)
