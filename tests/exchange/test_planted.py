"""What was made to attack a reader of weights: refused in one line, nothing executed, memory bounded."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gpts import Attack, nanogpt_checkpoint, oracle, plain_pickle, random_gpt

from overnight import checkpoint, presets
from overnight.config import resolve
from overnight.errors import UserError
from overnight.exchange import huggingface, llmc, sources
from overnight.model import weights
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer


def refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        sources.read(str(path)).build()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder of each kind, all of which can be read."""
    path = tmp_path_factory.mktemp("good")
    for name in ("hf", "nanogpt", "build-nanogpt", "llm.c"):
        (path / name).mkdir()
    gpt = random_gpt(activation="gelu_tanh", vocab_size=257)
    huggingface.write(Pretrained("made", gpt.config, 32, weights(gpt), BytesTokenizer()), path / "hf", torch.float32)
    oracle().save_pretrained(path / "sharded", max_shard_size="20KB")
    shutil.copytree(path / "hf", path / "old")
    (path / "old" / "model.safetensors").unlink()
    named = {f"transformer.{name}": tensor for name, tensor in huggingface.transformers_names(gpt).items()}
    torch.save(named, path / "old" / "pytorch_model.bin")
    (path / "old" / "tokenizer.json").unlink()
    (path / "old" / "vocab.json").write_text("{}")
    (path / "old" / "merges.txt").write_text("")
    (path / "old" / "added_tokens.json").write_text("{}")
    nanogpt_checkpoint(gpt, path / "nanogpt" / "ckpt.pt")
    plain_pickle({"vocab_size": 257}, path / "nanogpt" / "meta.pkl")
    nanogpt_checkpoint(gpt, path / "build-nanogpt" / "model_00001.pt")
    (path / "llm.c" / "model.bin").write_bytes(b"".join(llmc.to_bytes(weights(gpt), 4, torch.float32)))
    _run(path / "run")
    for folder in path.iterdir():
        sources.read(str(folder)).build()
    return path


def _run(out: Path) -> None:
    tokenizer = CharTokenizer("abc", True)
    gpt = random_gpt(vocab_size=tokenizer.vocab_size)
    config = presets.gpt2_tiny()
    recipe = replace(config.recipe, model=gpt.config, data=replace(config.recipe.data, sequence_length=32))
    folder = RunFolder.create(out, resolve(replace(config, recipe=recipe), "chars", tokenizer.vocab_size))
    (out / "tokenizer.json").write_text(tokenizer.to_json())
    folder.decide(0, "init_from", 1, "as it is")
    checkpoint.save(folder.checkpoints, checkpoint.State(step=2, tokens=9), weights(gpt), {})


STEP = "checkpoints/step_00000002"
FILES = [
    *(f"hf/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
    *("hf/special_tokens_map.json", "sharded/model.safetensors.index.json"),
    *(f"old/{name}" for name in ("pytorch_model.bin", "vocab.json", "merges.txt", "added_tokens.json")),
    *("nanogpt/ckpt.pt", "nanogpt/meta.pkl", "build-nanogpt/model_00001.pt", "llm.c/model.bin"),
    *("run/config.json", "run/tokenizer.json", "run/decisions.jsonl"),
    *(f"run/{STEP}/{name}" for name in ("state.json", "model.safetensors")),
]


def _planted(attack: Attack) -> dict[str, bytes]:
    zipped = io.BytesIO()
    torch.save({"model": attack}, zipped)
    return {"pickle": pickle.dumps(attack), "value": pickle.dumps({"a": attack}), "zip": zipped.getvalue()}


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_the_place_of_each_file_is_refused_and_not_executed(good, file, tmp_path):
    kind, planted = file.partition("/")[0], tmp_path / "planted"
    shutil.copytree(good / kind, tmp_path / kind)
    for form, content in _planted(Attack(planted)).items():
        (tmp_path / file).write_bytes(content)
        refused(tmp_path / kind)
        assert not planted.exists(), form
    pickle.loads(_planted(Attack(planted))["pickle"])
    assert planted.exists()  # it would have worked


def test_a_pickle_in_the_place_of_each_shard_is_refused_and_not_executed(good, tmp_path):
    shutil.copytree(good / "sharded", tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        before = shard.read_bytes()
        for content in _planted(Attack(tmp_path / "planted")).values():
            shard.write_bytes(content)
            assert shard.name in refused(tmp_path / "sharded")
        shard.write_bytes(before)
    assert not (tmp_path / "planted").exists()


def test_a_pickle_in_a_checkpoint_that_says_its_hash_is_refused_and_not_executed(good, tmp_path):
    shutil.copytree(good / "run", tmp_path / "run")
    folder = tmp_path / "run" / STEP
    for content in _planted(Attack(tmp_path / "planted")).values():
        (folder / "model.safetensors").write_bytes(content)
        state = json.loads((folder / "state.json").read_text())
        described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        state["files"]["model.safetensors"] = described
        state.pop("sha256", None)  # its own hash, which older checkpoints do not have
        (folder / "state.json").write_text(json.dumps(state))
        assert "model.safetensors" in refused(tmp_path / "run")
    assert not (tmp_path / "planted").exists()


def test_a_pickle_behind_the_header_of_llmc_is_refused_and_not_executed(good, tmp_path):
    whole = (good / "llm.c" / "model.bin").read_bytes()
    for content in _planted(Attack(tmp_path / "planted")).values():
        (tmp_path / "model.bin").write_bytes(whole[:1024] + content)
        refused(tmp_path)
    assert not (tmp_path / "planted").exists()


def test_a_pickle_among_what_a_checkpoint_holds_is_refused_and_not_executed(tmp_path):
    planted, gpt = tmp_path / "planted", random_gpt()
    attack = Attack(planted)
    for changed in ({"config": attack}, {"optimizer": {"state": attack}}, {"best_val_loss": [attack]}):
        refused(nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt", **changed))
    oracle().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": attack}, tmp_path / "hf" / "pytorch_model.bin")
    refused(tmp_path / "hf")
    assert not planted.exists()


class Large:
    """Unpickled, it is larger than its file by whatever is asked for."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(bytearray, 10**14), (torch.Tensor, 10**7, 10**7), (torch.UntypedStorage, 10**14)])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_number_is_not_taken_for_a_size(call, zipped, tmp_path):
    path = tmp_path / "ckpt.pt"
    torch.save({"model": {}, "config": Large(*call)}, path, _use_new_zipfile_serialization=zipped)
    assert "more than weights" in refused(path)


def test_an_archive_elsewhere_in_the_file_hides_nothing(tmp_path):
    """torch goes by the first bytes, zipfile by the last ones: they must not read two different things."""
    path, sound = tmp_path / "ckpt.pt", nanogpt_checkpoint(random_gpt(), tmp_path / "sound.pt").read_bytes()
    torch.save({"model": {}, "config": Large(bytearray, 10**14)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + sound)
    assert "more than weights" in refused(path)
    path.write_bytes(sound + sound)
    assert "does not begin" in refused(path)


def test_the_form_of_older_torch_is_read(tmp_path):
    gpt = random_gpt()
    content = torch.load(nanogpt_checkpoint(gpt, tmp_path / "ckpt.pt"), weights_only=True)
    torch.save(content, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "ckpt.pt")
    assert torch.equal(sources.read(str(tmp_path)).tensors["wte.weight"], weights(gpt)["wte.weight"])


def _rewritten(path: Path, change) -> None:
    """The same archive, each entry as `change` has it."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        change(archive, entries)


def test_compressed_entries_are_refused(tmp_path):
    path = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")

    def compress(archive: zipfile.ZipFile, entries: list[tuple[str, bytes]]) -> None:
        for name, content in entries:
            squeezed = name.endswith("data/0")
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if squeezed else zipfile.ZIP_STORED)

    _rewritten(path, compress)
    assert "is compressed" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    path = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")

    def twice(archive: zipfile.ZipFile, entries: list[tuple[str, bytes]]) -> None:
        for name, content in entries:
            archive.writestr(name, content)
            if name.endswith("data.pkl"):
                archive.writestr(name.replace("data.pkl", "DATA.pkl"), content)

    _rewritten(path, twice)
    assert "same name" in refused(path)


def test_entries_that_overlap_are_refused(tmp_path):
    path = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")
    with zipfile.ZipFile(path, "a") as archive:  # the directory has the largest entry thirty times
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(30):
            again = zipfile.ZipInfo.__new__(zipfile.ZipInfo)
            for slot in zipfile.ZipInfo.__slots__:
                if hasattr(largest, slot):
                    setattr(again, slot, getattr(largest, slot))
            again.filename = again.orig_filename = f"{largest.filename}{number}"
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "overlap" in refused(path)


def test_files_that_promise_more_than_they_hold_take_no_memory(tmp_path):
    """A few bytes that stand for terabytes: refused before anything of that size is made."""
    gpt = random_gpt()
    state = {f"transformer.{name}": tensor for name, tensor in weights(gpt).items()}
    wide = torch.zeros(1).expand(10**7, 10**6)  # one number
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (97, 32))
    arguments = {"n_head": 4}
    for name, changed in (
        ("wide", {"transformer.wte.weight": wide}),
        ("sparse", {"transformer.wte.weight": sparse}),
        ("name", {7: torch.zeros(2)}),
    ):
        torch.save({"model": state | changed, "model_args": arguments}, tmp_path / f"{name}.pt")
        with pytest.raises(UserError):
            sources.read(str(tmp_path / f"{name}.pt"))
    small = {"wte.weight": torch.zeros(1, 10**6), "wpe.weight": torch.zeros(1, 10**6)}
    small["h.0.attn.c_attn.weight"] = torch.zeros(1, 1)
    torch.save({"model": small, "model_args": arguments}, tmp_path / "small.pt")
    with pytest.raises(UserError):
        sources.read(str(tmp_path / "small.pt")).build()
    header = np.zeros(256, "<i4")
    header[:8] = llmc.MAGIC, 3, 1, 1, 2**31 - 1, 1, 1, 1
    (tmp_path / "model.bin").write_bytes(header.tobytes())
    with pytest.raises(UserError, match="damaged"):
        sources.read(str(tmp_path / "model.bin"))
