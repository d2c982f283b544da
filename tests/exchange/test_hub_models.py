"""OpenAI's weights, and anybody's, from a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpts import logits, oracle, tokens
from hub_server import FakeHub, Fault, serving
from huggingface_hub import scan_cache_dir

from overnight.errors import UserError
from overnight.exchange import hub, sources


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, which is that of the environment; caches of this test alone."""
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "1.5")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        oracle().save_pretrained(tmp_path / "model")
        files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        server.commit("openai-community/gpt2", {**files, "README.md": b"not wanted", "tf_model.h5": b"neither"})
        yield server


def test_gpt2_is_fetched_once_and_is_the_model(fake):
    read = sources.read("gpt2")
    model = oracle()
    assert (logits(model, tokens(97)) - logits(read.build(), tokens(97))).abs().max() < 1e-5
    assert set(fake.fetched()) == {"config.json", "model.safetensors"}
    sources.read("gpt2")
    assert sum(fake.fetched().values()) == 2


def test_what_was_fetched_is_there_without_a_network(fake, monkeypatch):
    sources.read("gpt2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(fake.seen)
    assert sources.read("gpt2").model.n_layer == 2
    assert len(fake.seen) == asked


def test_a_hub_that_does_not_answer_is_done_without_where_the_model_was_fetched(fake, capsys, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "0.1")
    folder = hub.fetch("openai-community/gpt2", print)
    fake.fault = lambda seen: Fault(status=503)
    assert sources.read("gpt2").model.n_layer == 2
    told = capsys.readouterr().err
    assert "does not answer" in told and len(told.splitlines()) == 1
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")  # into a cache that was emptied
    with pytest.raises(UserError, match="cannot be fetched"):
        sources.read("gpt2")


def test_a_link_into_a_cache_that_was_emptied_is_made_anew(fake, tmp_path, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("openai-community/gpt2", "model.safetensors", endpoint=fake.url)
    assert (hub.fetch("openai-community/gpt2", print) / "model.safetensors").is_symlink()
    before = fake.fetched()
    (tmp_path / "hub").rename(tmp_path / "moved")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "moved"))
    assert sources.read("gpt2").model.n_layer == 2
    assert fake.fetched() == before


def test_an_interrupted_download_goes_on(fake, tmp_path):
    whole = (tmp_path / "model" / "model.safetensors").stat().st_size
    fake.fault = lambda seen: Fault(cut=whole // 3) if seen.place == "cdn" and seen.range is None else None
    sources.read("openai-community/gpt2")
    ranges = [seen.range for seen in fake.seen if seen.place == "cdn" and seen.method == "GET"]
    assert ranges == [None, f"bytes={whole // 3}-"]


def test_killed_between_two_files_it_fetches_the_rest(fake, monkeypatch):
    fetched = []

    def die(self, commit, file, partial, tick, real=hub.Hub.download):
        if fetched:
            raise KeyboardInterrupt
        fetched.append(file.path)
        real(self, commit, file, partial, tick)

    with monkeypatch.context() as patch:
        patch.setattr(hub.Hub, "download", die)
        with pytest.raises(KeyboardInterrupt):
            sources.read("gpt2")
    sources.read("gpt2")
    assert fake.fetched() == {"config.json": 1, "model.safetensors": 1}


def test_other_bytes_are_refused_and_not_kept(fake, tmp_path):
    fake.fault = lambda seen: Fault(other=True) if seen.place == "cdn" else None
    with pytest.raises(UserError, match="does not have the SHA-256") as refusal:
        sources.read("gpt2")
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_what_huggingface_hub_has_kept_is_used(fake, tmp_path, monkeypatch):
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors"):
        hf_hub_download("openai-community/gpt2", name, endpoint=fake.url)
    kept = scan_cache_dir(tmp_path / "hub")  # imported before the fixture moves the cache: it has its own idea of where
    assert {repo.repo_id for repo in kept.repos} == {"openai-community/gpt2"}
    before = sum(fake.fetched().values())
    sources.read("gpt2")
    assert sum(fake.fetched().values()) == before
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "0.1")
    fake.fault = lambda seen: Fault(status=503)
    assert sources.read("gpt2").model.n_layer == 2
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(fake.seen)
    assert torch.equal(sources.read("gpt2").tensors["wte.weight"], sources.read("gpt2").tensors["wte.weight"])
    assert len(fake.seen) == asked


def test_names_that_are_not_there(fake, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no model nobody/nothing"):
        sources.read("nobody/nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    asked = len(fake.seen)
    for source in ("runs/typo", "gpt2-med", "typo"):
        with pytest.raises(UserError, match="no file or folder"):
            sources.read(source)
    assert len(fake.seen) == asked  # a mistyped path asks no hub
    fake.commit("some/other", {"config.json": json.dumps({"model_type": "bert"}).encode(), "pytorch_model.bin": b"1"})
    with pytest.raises(UserError, match="only 'gpt2' and 'overnight_modern' can be read"):
        sources.read("some/other")
    fake.commit("some/empty", {"config.json": b"{}"})
    with pytest.raises(UserError, match="no weights"):
        sources.read("some/empty")


@pytest.fixture
def sharded(fake: FakeHub, tmp_path: Path) -> dict[str, bytes]:
    """The files of a model whose weights are in several, under names that nothing but their index tells."""
    oracle().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "sharded").iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) > 1
    odd = {name: name.replace("model-", "part-") for name in files if name.endswith(".safetensors")}
    index["weight_map"] = {tensor: odd[name] for tensor, name in index["weight_map"].items()}
    return {odd.get(name, name): content for name, content in files.items()} | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-of-another-kind.safetensors": b"not named by the index",
    }


def test_the_index_says_which_files_are_fetched(fake, sharded):
    fake.commit("some/sharded", sharded)
    read = sources.read("some/sharded")
    assert (logits(oracle(), tokens(97)) - logits(read.build(), tokens(97))).abs().max() < 1e-5
    named = {name for name in sharded if name.startswith("part-")}
    assert set(fake.fetched()) == {"config.json", "model.safetensors.index.json", *named}
    before = sum(fake.fetched().values())
    sources.read("some/sharded")
    assert sum(fake.fetched().values()) == before


def test_a_sharded_model_that_huggingface_hub_has_kept_is_used(fake, sharded):
    from huggingface_hub import hf_hub_download

    fake.commit("some/sharded", sharded)
    names = [name for name in sharded if name.startswith("part-")]
    for name in ("config.json", "model.safetensors.index.json", *names[1:]):
        hf_hub_download("some/sharded", name, endpoint=fake.url)
    before = sum(fake.fetched().values())
    sources.read("some/sharded")
    assert sum(fake.fetched().values()) == before + 1  # the one that was not there
    hf_hub_download("some/sharded", names[0], endpoint=fake.url)
    assert hub.fetch("some/sharded", print).parent.name == "snapshots"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../outside.safetensors", "of this folder"),
        ("deep/inside.safetensors", "of this folder"),
        ("..\\outside.safetensors", "of this folder"),
        ("config.json", "of this folder"),
        ("part-none.safetensors", "which is not there"),
    ],
)
def test_an_index_that_names_what_it_may_not(name, told, fake, sharded):
    index = {"weight_map": {"transformer.wte.weight": name}}
    fake.commit("some/odd", sharded | {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(UserError, match=told) as refusal:
        sources.read("some/odd")
    assert "\n" not in str(refusal.value)
    assert set(fake.fetched()) == {"config.json", "model.safetensors.index.json"}
