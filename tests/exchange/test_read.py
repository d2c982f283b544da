"""Weights from elsewhere give the logits that they give there; what is not weights is refused and not executed."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import pytest
import torch
from gpts import (
    GPT2_SHAPES,
    build_nanogpt_checkpoint,
    logits,
    nanogpt_checkpoint,
    oracle,
    plain_pickle,
    random_gpt,
    tokens,
)
from safetensors.torch import load_file, save_file

from overnight.errors import UserError
from overnight.exchange import llmc, names, sources
from overnight.model import weights


def agree(one, other, vocab_size: int) -> None:
    ids = tokens(vocab_size)
    assert (logits(one, ids) - logits(other, ids)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", GPT2_SHAPES)
def test_the_four_shapes_of_gpt2_from_transformers(shape, tmp_path):
    n_layer, n_head = GPT2_SHAPES[shape]
    model = oracle(n_layer, n_head, 4 * n_head)
    model.save_pretrained(tmp_path)
    read = sources.read(str(tmp_path))
    agree(model, read.build(), 97)
    again = names.our_names(names.transformers_names(read.build()), "there and back")
    assert all(torch.equal(again[name], tensor) for name, tensor in read.tensors.items())


def test_gpt2_124m_at_full_size(tmp_path):
    model = oracle(12, 12, 768, 50257, n_positions=1024)
    model.save_pretrained(tmp_path)
    read = sources.read(str(tmp_path))
    assert (read.model.vocab_size, read.block_size) == (50257, 1024)
    agree(model, read.build(), 50257)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")]
)
def test_the_activation_is_carried(theirs, ours, tmp_path):
    model = oracle(activation_function=theirs)
    model.save_pretrained(tmp_path)
    read = sources.read(str(tmp_path))
    assert read.model.activation == ours
    agree(model, read.build(), 97)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": 1e-6},
        {"tie_word_embeddings": False},
        {"n_head": 5},
        {"n_head": None},
        {"n_layer": 3},
        {"n_embd": 64},
        {"n_positions": 16},
        {"vocab_size": 98},
        {"n_inner": 64},
        {"vocab_size": "97"},
    ],
)
def test_another_model_in_transformers_is_refused(change, tmp_path):
    oracle().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError) as refusal:
        sources.read(str(tmp_path))
    assert str(tmp_path / "config.json") in str(refusal.value) or "n_head" in change
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_both_numbers_are_told_where_a_configuration_is_not_that_of_its_tensors(tmp_path):
    oracle().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_positions": 1024}))
    with pytest.raises(UserError) as refusal:
        sources.read(str(tmp_path))
    assert str(refusal.value) == f"{config}: n_positions is 1024, but the tensors have 32"
    path = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt", model_args={"n_head": 4, "block_size": 64})
    with pytest.raises(UserError, match=r"ckpt\.pt: block_size is 64, but the tensors have 32"):
        sources.read(str(path))


def test_quantized_weights_are_refused(tmp_path):
    oracle().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "transformer.h.0.mlp.c_fc.weight": torch.zeros(32, 128, dtype=torch.int8)}, file)
    with pytest.raises(UserError, match=r"h\.0\.mlp\.c_fc\.weight.*int8"):
        sources.read(str(tmp_path))


def test_weights_in_several_files_and_in_an_older_one(tmp_path):
    model = oracle()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    agree(model, sources.read(str(tmp_path / "sharded")).build(), 97)
    model.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    agree(model, sources.read(str(tmp_path / "old")).build(), 97)


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    oracle().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "outside.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../outside.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="files of this folder"):
        sources.read(str(tmp_path))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(bias, prefix, tmp_path):
    gpt = random_gpt(bias=bias)
    read = sources.read(str(nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt", prefix)))
    assert (read.model, read.block_size) == (gpt.config, 32)
    assert any("optimizer" in note for note in read.notes)
    agree(gpt, read.build(), 97)
    assert sources.read(str(tmp_path)).where == str(tmp_path / "ckpt.pt")


def test_the_characters_of_a_nanogpt_dataset_are_found(tmp_path):
    characters = "\n !abc"
    meta = {"vocab_size": 6, "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    (tmp_path / "data" / "letters").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    plain_pickle(meta, tmp_path / "data" / "letters" / "meta.pkl")
    gpt = random_gpt(vocab_size=6)
    path = nanogpt_checkpoint(gpt, tmp_path / "out" / "ckpt.pt", config={"dataset": "letters"})
    tokenizer = sources.read(str(path)).tokenizer
    assert tokenizer is not None and tokenizer.encode("cab!").tolist() == [5, 3, 4, 2]
    nanogpt_checkpoint(gpt, tmp_path / "out" / "ckpt.pt", config={"dataset": "../data/letters"})
    assert sources.read(str(path)).tokenizer is None
    plain_pickle(meta, tmp_path / "meta.pkl")  # data/.. is no dataset of nanoGPT's
    for outside in ("..", ".", "", str(tmp_path), "letters/../letters", "a\0b", 7):
        nanogpt_checkpoint(gpt, tmp_path / "out" / "ckpt.pt", config={"dataset": outside})
        assert sources.read(str(path)).tokenizer is None, outside


def test_a_meta_pkl_with_more_ids_than_rows_is_said_to_be_anothers(tmp_path):
    plain_pickle({"vocab_size": 98}, tmp_path / "meta.pkl")
    read = sources.read(str(nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")))
    assert read.tokenizer is None and any("98 ids, more than the 97" in note for note in read.notes)
    with pytest.raises(UserError, match="98 ids, more than the 97"):
        read.known_tokenizer()


def test_padding_that_was_trained_stays(tmp_path):
    gpt = random_gpt(vocab_size=50304, n_embd=8)
    read = sources.read(str(nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt")))
    assert read.model.vocab_size == 50304
    assert read.tokenizer is not None and read.tokenizer.vocab_size == 50257
    agree(gpt, read.build(), 50304)


def test_build_nanogpt(tmp_path):
    gpt = random_gpt(activation="gelu_tanh", vocab_size=50304, n_embd=8)
    build_nanogpt_checkpoint(gpt, tmp_path / "model_00003.pt")
    read = sources.read(str(tmp_path))
    assert read.model.activation == "gelu_tanh"
    agree(gpt, read.build(), 50304)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llmc(dtype, tmp_path):
    gpt = random_gpt(activation="gelu_tanh")
    path = tmp_path / "gpt2.bin"
    path.write_bytes(b"".join(llmc.to_bytes(weights(gpt), 4, dtype)))
    read = sources.read(str(path))
    assert read.model.vocab_size == 97
    rounded = random_gpt(activation="gelu_tanh")
    with torch.no_grad():
        for tensor in weights(rounded).values():
            tensor.copy_(tensor.to(dtype).float())
    agree(rounded, read.build(), 97)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="its header says"):
        sources.read(str(path))


def test_a_tensor_that_does_not_fit_names_itself(tmp_path):
    oracle().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    for name, change in (
        ("transformer.h.1.mlp.c_fc.bias", lambda tensor: None),
        ("transformer.h.0.ln_1.weight", lambda tensor: tensor[:-1].clone()),
    ):
        changed = {key: change(value) if key == name else value for key, value in whole.items()}
        save_file({key: value for key, value in changed.items() if value is not None}, file)
        with pytest.raises(UserError, match=name.removeprefix("transformer.")):
            sources.read(str(tmp_path)).build()
    save_file({**whole, "transformer.h.0.extra": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"unknown tensor 'h\.0\.extra'"):
        sources.read(str(tmp_path)).build()
    save_file({**whole, "lm_head.weight": whole["transformer.wte.weight"] + 1}, file)
    with pytest.raises(UserError, match="untied head"):
        sources.read(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04 half a zip", b"\x80\x02."])
def test_what_is_no_checkpoint_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        sources.read(str(path))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")
    assert zipfile.is_zipfile(path)
    content = path.read_bytes()
    for size in (10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"ckpt\.pt"):
            sources.read(str(path))


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        sources.read(str(tmp_path / "typo"))
    with pytest.raises(UserError, match="no weights that can be read"):
        sources.read(str(tmp_path))


def test_weights_without_a_tokenizer_take_only_one_of_their_size(tmp_path):
    from overnight.tokenizers.gpt2 import GPT2Tokenizer
    from overnight.tokenizers.simple import BytesTokenizer

    oracle(vocab_size=300, n_embd=8, n_layer=1).save_pretrained(tmp_path / "small")
    small = sources.read(str(tmp_path / "small"))
    assert small.tokenizer is None
    small.refuse_other_tokenizer(BytesTokenizer(), "data")  # 257 ids, rounded up
    with pytest.raises(UserError, match="another tokenizer"):
        small.refuse_other_tokenizer(GPT2Tokenizer(), "data")
    oracle(vocab_size=50257, n_embd=8, n_layer=1).save_pretrained(tmp_path / "gpt2")
    bare = sources.read(str(tmp_path / "gpt2"))
    assert isinstance(bare.tokenizer, GPT2Tokenizer) and bare.notes
    with pytest.raises(UserError, match="was trained with gpt2"):
        bare.refuse_other_tokenizer(BytesTokenizer(), "data")


def test_more_rows_than_ids_are_a_matter_of_the_trainer(tmp_path):
    from overnight.tokenizers.simple import BytesTokenizer

    read = sources.read(str(nanogpt_checkpoint(random_gpt(vocab_size=600), tmp_path / "ckpt.pt")))
    dataclasses.replace(read, tokenizer=BytesTokenizer()).refuse_other_tokenizer(BytesTokenizer(), "data")
    with pytest.raises(UserError, match="another tokenizer"):
        read.refuse_other_tokenizer(BytesTokenizer(), "data")  # it names none, and 600 is not 257 rounded up
