"""A hub on this machine with a small FineWeb-Edu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import texts
from hub_corpus import CARD, DOCUMENTS, FILES, REPO, made, parquet
from hub_server import FakeHub, serving

from overnight.data.sources import hub as hub_source


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """FineWeb-Edu in small."""
    folder = tmp_path_factory.mktemp("repository")
    files = {f"sample/10BT/{n:03d}_00000.parquet": parquet(texts(DOCUMENTS, n), folder) for n in range(FILES)}
    files["data/CC-MAIN-2013-20/000_00000.parquet"] = parquet(texts(12, 99), folder)
    return {**files, "README.md": CARD, ".gitattributes": b"x"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: dict[str, bytes]) -> Iterator[FakeHub]:
    with serving() as server:
        server.commit(REPO, repository)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "2")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(hub_source, "part_size", lambda total: 5000)
        monkeypatch.setattr("overnight.data.fetching.POLL", 0.01)
        monkeypatch.setattr("overnight.data.engines.local.POLL", 0.01)
        yield server


@pytest.fixture(scope="session")
def expected(repository: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out of an undisturbed preparation."""
    out = tmp_path_factory.mktemp("expected") / "out"
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        server.commit(REPO, repository)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setattr(hub_source, "part_size", lambda total: 5000)
        return made(out)
