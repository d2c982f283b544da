"""GGUF files against the package gguf's own reader, and their tokenizers against what llama.cpp does with them."""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, dequantize
from gpts import logits, random_gpt, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.errors import UserError
from overnight.exchange import certificate, gguf, huggingface, llamacpp
from overnight.exchange.gguf_vocabulary import describe
from overnight.model import weights
from overnight.pretrained import Pretrained
from overnight.tokenizers import train
from overnight.tokenizers.byte_level import BYTE_OF
from overnight.tokenizers.gpt2 import GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

TEXT = "naïve café, don't  stop:\n\tfor i in range(10): print(i)  # 日本語 😀 <|endoftext|> \x00\\x41 "
NAMES = {  # those that llama.cpp's src/models/gpt2.cpp asks for
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def llama_cpp_name(name: str) -> str:
    parts = name.split(".")
    if name in NAMES:
        return NAMES[name]
    if parts[0] == "ln_f":
        return f"output_norm.{parts[1]}"
    return f"blk.{parts[1]}.{NAMES['.'.join(parts[2:-1])]}.{parts[-1]}"


def pretrained(tokenizer=None, rows: int | None = None, **more) -> Pretrained:
    tokenizer = tokenizer or BytesTokenizer()
    gpt = random_gpt(vocab_size=rows or tokenizer.vocab_size, **{"activation": "gelu_tanh", **more})
    tensors = {name: tensor.clone() for name, tensor in weights(gpt).items()}
    return Pretrained("somewhere", gpt.config, gpt.block_size, tensors, tokenizer)


def written(model: Pretrained, path: Path, dtype: str = "float32", **more) -> GGUFReader:
    gguf.write(model, path, dtype, **more)
    return GGUFReader(path)


def field(reader: GGUFReader, key: str):
    found = reader.get_field(key)
    return None if found is None else found.contents()


def rounded(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """What a matrix is in a type of torch's, or by the definition of q8_0: 32 weights, a scale in float16."""
    if dtype != "q8_0":
        return tensor.to(getattr(torch, dtype)).float()
    blocks = tensor.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    steps = torch.where(scale > 0, blocks / scale, 0)
    return ((steps.abs() + 0.5).floor() * steps.sign() * scale.half().float()).view_as(tensor)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", gguf.DTYPES)
def test_tensors(dtype, bias, tmp_path):
    model = pretrained(bias=bias)
    reader = written(model, tmp_path / "model.gguf", dtype)
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = {llama_cpp_name(name): tensor for name, tensor in model.tensors.items()}
    biases = set(found) - set(expected)
    assert set(expected) <= set(found) and bool(biases) is not bias
    for name in biases:
        assert name.endswith(".bias") and name.removesuffix("bias") + "weight" in expected
        assert not np.any(found[name].data) and found[name].tensor_type.name == "F32"
    assert len(found) == 4 + 12 * model.model.n_layer  # every bias is there
    for name, tensor in expected.items():
        small = tensor.dim() == 1 or name == "position_embd.weight"
        stored = found[name]
        assert stored.tensor_type.name == ("F32" if small else gguf.DTYPES[dtype]), name
        assert tuple(reversed(stored.shape.tolist())) == tuple(tensor.shape), name
        values = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        wanted = tensor if small else rounded(tensor, dtype)
        assert torch.equal(values.view_as(tensor), wanted), name


@pytest.mark.parametrize(("dtype", "file_type"), [("float32", 0), ("float16", 1), ("q8_0", 7), ("bfloat16", 32)])
def test_metadata(dtype, file_type, tmp_path):
    model = pretrained()
    reader = written(model, tmp_path / "model.gguf", dtype, name="a run")
    known = {key for key in reader.fields if not key.startswith(("GGUF.", "tokenizer."))}
    expected = {
        "general.architecture": "gpt2",
        "general.name": "a run",
        "general.file_type": file_type,
        "gpt2.block_count": 2,
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": np.float32(model.build().ln_f.eps),
    } | ({"general.quantization_version": 2} if dtype == "q8_0" else {})
    assert known == {*expected, "general.description"}
    assert {key: field(reader, key) for key in expected} == expected
    assert str(field(reader, "general.description")).startswith("written by overnight ")


def as_the_library(tokens: list[str], merges: list[str]) -> Library:
    """Byte-level BPE from a file's tokens and merges, with GPT-2's pattern, by another program."""
    library = Library(
        models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    return library


@pytest.mark.parametrize("name", ["gpt2", "bpe:300"])
def test_byte_level_tokenizers(name, tmp_path):
    tokenizer = train(name, [TEXT * 3, "the cat sat on the mat and the rat"])
    reader = written(pretrained(tokenizer, rows=tokenizer.vocab_size + 3, n_embd=8, n_head=1), tmp_path / "model.gguf")
    assert (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    names, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    end = tokenizer.vocab_size - 1
    assert names[end:] == ["<|endoftext|>", *(f"[PAD{end + n}]" for n in (1, 2, 3))]
    assert kinds == [1] * end + [3] + [5] * 3  # normal, control, unused
    for key in ("bos", "eos"):
        assert field(reader, f"tokenizer.ggml.{key}_token_id") == end
    assert field(reader, "tokenizer.ggml.add_bos_token") is False
    library = as_the_library(names, field(reader, "tokenizer.ggml.merges"))

    @settings(max_examples=50, deadline=None)
    @given(st.text() | st.text(" \n'stre1a"))
    def same(text: str) -> None:
        assert library.encode(text).ids == tokenizer.encode(text).tolist()

    same()
    assert library.encode(TEXT).ids == tokenizer.encode(TEXT).tolist()


def merged(text: str, tokens: list[str], merges: list[tuple[str, str]]) -> list[int]:
    """What llama.cpp's byte-level BPE makes of a word (src/llama-vocab.cpp): merges by rank, then ids by name.

    What is no token is left out. The pattern that cuts text into words makes no difference where no merge crosses
    characters.
    """
    name_of, ids = {byte: name for name, byte in BYTE_OF.items()}, {token: i for i, token in enumerate(tokens)}
    symbols, ranks = [name_of[byte] for byte in text.encode()], {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = list(itertools.pairwise(symbols))
        found = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks]
        if not found:
            return [ids[symbol] for symbol in symbols if symbol in ids]
        _, at = min(found)
        symbols[at : at + 2] = ["".join(pairs[at])]


CHARACTERS = "".join(sorted(set(TEXT + "€\u0301ａ𝄞ÿ¡Ā")))


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), CharTokenizer(CHARACTERS, end_of_text=True)])
def test_bytes_and_characters(tokenizer, tmp_path):
    reader = written(pretrained(tokenizer), tmp_path / "model.gguf")
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    end = tokenizer.vocab_size - 1
    assert merges and len(tokens) == len(set(tokens)) == tokenizer.vocab_size
    assert field(reader, "tokenizer.ggml.token_type") == [1] * end + [3]
    assert field(reader, "tokenizer.ggml.eos_token_id") == end

    @given(st.text(CHARACTERS))
    def same(text: str) -> None:
        assert merged(text, tokens, merges) == tokenizer.encode(text).tolist()

    same()


def test_ascii_characters_without_an_end_of_text(tmp_path):
    """llama.cpp's trie takes the longest token that fits; what follows a backslash is a byte in hexadecimal."""
    characters = "".join(map(chr, range(128)))
    reader = written(pretrained(CharTokenizer(characters, end_of_text=False)), tmp_path / "model.gguf")
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert field(reader, "tokenizer.ggml.model") == "rwkv"
    assert [codecs.decode(token, "unicode_escape") for token in tokens] == list(characters)
    assert all(token and token.isprintable() for token in tokens)  # an empty one, or a 0 byte, would be cut off
    assert reader.get_field("tokenizer.ggml.eos_token_id") is None


class Other(BytesTokenizer):
    """A tokenizer of somebody else's: what it does, only its code says."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "my_package.tokenizers:mine"


def changed(model: Pretrained, **more) -> Pretrained:
    return dataclasses.replace(model, model=dataclasses.replace(model.model, **more))


def with_tokenizer(tokenizer) -> Pretrained:
    return dataclasses.replace(pretrained(), tokenizer=tokenizer)


def huge() -> Pretrained:
    model = pretrained()
    model.tensors["h.1.mlp.c_fc.weight"][0, 0] = 1e5
    return model


@pytest.mark.parametrize(
    ("make", "dtype", "message"),
    [
        (lambda: pretrained(activation="gelu"), "float32", "somewhere: .*exact GELU.*--approximate-gelu"),
        (lambda: changed(pretrained(), block="modern"), "float32", "somewhere: .*block 'gpt2', not for 'modern'"),
        (lambda: with_tokenizer(None), "float32", "somewhere: its tokenizer is not known"),
        (
            lambda: dataclasses.replace(pretrained(), tokenizer=GPT2Tokenizer()),
            "float32",
            "50257 ids, the model only 257",
        ),
        (lambda: pretrained(n_embd=16), "q8_0", "multiple of 32, not 16; use float16"),
        (lambda: pretrained(), "f32", "float32, float16, bfloat16, q8_0, not in 'f32'"),
        (huge, "float16", "'h.1.mlp.c_fc.weight' has values beyond float16; use bfloat16"),
        (lambda: pretrained(Other()), "float32", "no tokenizer such as my_package.tokenizers:mine"),
        (lambda: pretrained(CharTokenizer("aé", False)), "float32", "beyond ASCII \\('é'\\) without an end of text"),
        (lambda: pretrained(CharTokenizer("ab", False), rows=9), "float32", "2 characters, the model 9 rows"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_in_one_line(make, dtype, message, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"older")
    with pytest.raises(UserError, match=message) as refusal:
        gguf.write(make(), path, dtype)
    assert "\n" not in str(refusal.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.gguf", b"older")]


def without_a_tensor(path: Path) -> Path:
    content = path.read_bytes()
    assert content.count(b"output_norm.bias") == 1
    path.write_bytes(content.replace(b"output_norm.bias", b"output_norm.bios"))
    return path


@pytest.mark.parametrize("dtype", gguf.DTYPES)
def test_a_file_is_read_back_as_the_rounded_model(dtype, tmp_path):
    model, path = pretrained(bias=False), tmp_path / "model.gguf"
    gguf.write(model, path, dtype)
    again, expected = gguf.read(path), gguf.rounded(model, dtype)
    ids = tokens(257)
    assert torch.equal(logits(again.build(), ids), logits(expected.build(), ids))
    assert again.block_size == 32 and again.model == dataclasses.replace(model.model, bias=True)
    for name, tensor in expected.tensors.items():
        small = tensor.dim() == 1 or name == "wpe.weight"
        assert torch.equal(tensor, model.tensors[name] if small else rounded(model.tensors[name], dtype)), name
    with pytest.raises(ValueError, match="other tensors"):
        gguf.read(without_a_tensor(path))


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'overnight\[gguf\]'"):
        gguf.write(pretrained(), tmp_path / "model.gguf", "float32")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        llamacpp.logits(tmp_path / "model.gguf", [1])


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"older")

    def full(writer: GGUFWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        gguf.write(pretrained(), path, "float32")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.gguf", b"older")]


def test_the_same_model_is_the_same_file(tmp_path):
    for name in ("one", "two"):
        gguf.write(pretrained(), tmp_path / name, "q8_0")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_merge_makes_what_is_no_token_stay():
    """A character's beginning is no token: it must not be left over where the whole character follows."""
    found = describe(CharTokenizer("𝄞", end_of_text=True), 2)
    assert len(found.merges) == 3
    assert merged("𝄞𝄞", found.tokens, found.merges) == [0, 0]


# ---- overnight export --to gguf


@pytest.fixture
def exact(tmp_path) -> Path:
    """A folder of transformers' with the exact GELU."""
    (tmp_path / "theirs").mkdir()
    huggingface.write(pretrained(activation="gelu"), tmp_path / "theirs", torch.float32)
    return tmp_path / "theirs"


def test_export(overnight, exact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    out = tmp_path / "out"
    done = overnight("export", exact, "--to", "gguf", "--out", out, check=False)
    assert (done.returncode, out.exists()) == (2, False) and "--approximate-gelu" in done.stderr
    done = overnight("export", exact, "--to", "hf", "--out", out, "--approximate-gelu", check=False)
    assert (done.returncode, out.exists()) == (2, False) and "keeps the model's own GELU" in done.stderr
    said = overnight("export", exact, "--to", "gguf", "--out", out, "--approximate-gelu", "--dtype", "q8_0").stdout
    assert "reloaded by overnight itself" in said and "not tried" in said
    found = json.loads((out / "certificate.json").read_text())
    assert found["approximate_gelu"] is True and found["llama.cpp"] is None and found["tokenizer"] is None
    assert 0 < found["logits"]["rounding_to_dtype_changes_up_to"] < 0.1
    assert field(GGUFReader(out / "model.gguf"), "general.name") == "out"
    page = (out / "README.md").read_text()
    assert "by the other form of GELU and rounding to q8_0. " in page and 'Llama("FOLDER/model.gguf", n_ctx=32)' in page


class Llama:
    """llama.cpp as it is used here: a file's model, with a fault in it where one is wanted."""

    def __init__(self, path: Path, fault: str) -> None:
        self.gpt, self.fault = gguf.read(path).build(), fault
        self.closed = False

    def reset(self) -> None:
        self.ids: list[int] = []

    def eval(self, ids: list[int]) -> None:
        """Each row of the scores is of one token; a continuation comes token by token."""
        if self.fault == "raises":
            raise RuntimeError("llama_decode returned -1\nand more")
        self.ids += ids
        found = logits(self.gpt, torch.tensor([self.ids]))[0].numpy()
        found[3, 5] += {"logits": 1.0}.get(self.fault, 1e-5)
        if self.fault == "continues" and len(ids) == 1:
            found[-1, 7] += 100
        if self.fault == "continues later" and len(ids) == 1 and len(self.ids) == 20:
            found[-1, np.argsort(found[-1])[-2]] = found[-1].max() + 1e-6
        self.scores = found

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        assert special and add_bos  # neither is asked for in the text itself: the file decides
        ids = BytesTokenizer().encode_prompt(text.decode()).tolist()
        return [ids[0] + 1, *ids[1:]] if self.fault == "id" else ids

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("logits", "reloaded by llama.cpp the logits differ by up to 1, more than 0.0"),
        ("continues", "reloaded by llama.cpp the model continues otherwise: token 2 after"),
        ("continues later", "reloaded by llama.cpp the model continues otherwise: token 13 after"),
        ("id", "reloaded by llama.cpp the tokenizer gives"),
        ("raises", "llama.cpp fails on what was written: llama_decode returned -1 and more"),
        ("cannot load", "llama.cpp fails on what was written: Failed to load model"),
    ],
)
def test_export_asks_llama_cpp_itself(overnight, exact, tmp_path, monkeypatch, fault, message):
    models: list[Llama] = []

    def load(path: Path, context: int) -> Llama:
        assert context == 32
        if fault == "cannot load":
            raise ValueError("Failed to load model from file")
        models.append(Llama(path, fault))
        return models[0]

    monkeypatch.setattr(llamacpp, "load", load)
    monkeypatch.setattr(llamacpp, "version", lambda: "0.0.1")
    out = tmp_path / "out"
    done = overnight("export", exact, "--to", "gguf", "--out", out, "--approximate-gelu", check=not message)
    assert all(model.closed for model in models)
    if message:
        assert (done.returncode, done.stdout) == (1, "") and len(done.stderr.splitlines()) == 1
        assert message in done.stderr and [path.name for path in tmp_path.iterdir()] == ["theirs"]
        return
    assert "llama.cpp itself: logits equal to 1.0e-05" in done.stdout and "tokenizer: 257 ids" in done.stdout
    found = json.loads((out / "certificate.json").read_text())["llama.cpp"]
    assert found["versions"] == {"llama-cpp-python": "0.0.1"}
    assert found["continuations"]["equal"] == 3 and found["continuations"]["equal_tokens"] == [24, 24, 24]
    assert found["tolerance"] == pytest.approx(2e-3 * found["largest_logit"])


def test_a_continuation_may_part_at_a_tie_alone():
    """Two logits that are as near to each other as the tolerance: either may be taken, and is counted."""
    along = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.9], [0.0, 0.0, 5.0]])
    expected = certificate.Expected([], torch.tensor([[7]]), 2, [[1, 0]], [along], 5.0, 0.0)

    class Other:
        name = "another program"

        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        def greedy(self, prompts: torch.Tensor, count: int) -> list[list[int]]:
            assert (prompts.tolist(), count) == ([[7]], 2)
            return [self.ids]

    def compared(ids: list[int], tolerance: float) -> tuple[int, int, list[int]]:
        found = certificate.compare_continuations(expected, Other(ids), tolerance)
        return found["equal"], found["ties"], found["equal_tokens"]

    assert compared([1, 0], 0.0) == (1, 0, [2])
    assert compared([1, 2], 0.11) == (0, 1, [1])
    for ids, tolerance in (([1, 2], 0.09), ([0, 0], 1.0), ([1], 1.0), ([1, 0, 2], 1.0)):
        with pytest.raises(certificate.CertificateError, match="another program the model continues otherwise"):
            compared(ids, tolerance)
