"""Models of the Hugging Face hub: their files, fetched once, checked and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from overnight.data.lock import locked
from overnight.data.sizes import size
from overnight.errors import UserError
from overnight.exchange.huggingface import PICKLED, SHARDED, SINGLE, shards
from overnight.exchange.tokenizer_reading import FILES
from overnight.files import PARTIAL, write_atomic
from overnight.network.hub import Hub, Unreachable
from overnight.network.remote_files import RemoteFile, has_hash
from overnight.network.web import cache_folder

BESIDE = ("config.json", *FILES)


def fetch(repo: str, say: Callable[[str], None]) -> Path:
    """The folder with a model's configuration, weights and tokenizer.

    It is that of huggingface_hub's cache where all is there; else one in overnight's own, to which what is missing is
    fetched: interrupted, the next call goes on. Each file has the hash that the hub lists. Where the hub does not
    answer, what was fetched last is used. UserError where it cannot be had.
    """
    hub = Hub(repo, "model")
    base = cache_folder() / "models" / repo.replace("/", "--")
    own = _complete(base)
    if hub.offline and own is not None:
        return own
    try:
        commit, files = hub.snapshot(None) if hub.offline else _listed(hub)
    except Unreachable as error:
        if own is None:
            commit, files = _snapshot(hub, error)
        say(f"note: {hub.host} does not answer; {repo} is the one fetched before (HF_HUB_OFFLINE=1 does not ask)")
        if own is not None:
            return own
    by_name = {file.path: file for file in files}
    names = _wanted(repo, by_name)
    kept = {name: _cached(hub, commit, by_name[name]) for name in names}
    index = kept.get(SHARDED)
    if index is not None:
        names += _shards(index, repo, by_name)
        kept |= {name: _cached(hub, commit, by_name[name]) for name in names}
    config = kept["config.json"]
    if config is not None and None not in kept.values():
        return config.parent
    folder = base / commit
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"{repo} is being fetched by another process; wait for it"):
        for name in names:
            _fetch(hub, commit, by_name[name], kept[name], folder, say)
        if SHARDED in names:
            for name in _shards(folder / SHARDED, repo, by_name):
                _fetch(hub, commit, by_name[name], _cached(hub, commit, by_name[name]), folder, say)
        write_atomic(base / "main", commit)
    return folder


def _complete(base: Path) -> Path | None:
    """The folder of the commit that was fetched last, as long as all of it is there: the cache that a link leads to may
    have been emptied."""
    name = base / "main"
    if not name.is_file():
        return None
    folder = base / name.read_text(encoding="utf-8")
    return folder if folder.is_dir() and all(file.exists() for file in folder.iterdir()) else None


def _cached(hub: Hub, commit: str, file: RemoteFile) -> Path | None:
    """Where huggingface_hub's cache has a file, as long as it is the right one."""
    found = hub.cached(commit, file.path)
    return found if found is not None and has_hash(found, file) else None


def _listed(hub: Hub) -> tuple[str, list[RemoteFile]]:
    commit = hub.commit(None)
    return commit, hub.tree(commit)


def _snapshot(hub: Hub, error: Unreachable) -> tuple[str, list[RemoteFile]]:
    """What huggingface_hub's cache has; `error` where that is nothing."""
    try:
        return hub.snapshot(None)
    except UserError:
        raise error from None


def _wanted(repo: str, by_name: Mapping[str, RemoteFile]) -> list[str]:
    """config.json, the tokenizer's files and one form of the weights, safetensors where there are some; of weights in
    several files the index."""
    if "config.json" not in by_name:
        raise UserError(f"{repo} has no config.json: it is no model in transformers' format")
    weights = next((name for name in (SINGLE, SHARDED, PICKLED) if name in by_name), None)
    if weights is None:
        raise UserError(f"{repo} has no weights: none of {SINGLE}, {SHARDED}, {PICKLED}")
    return [*(name for name in BESIDE if name in by_name), weights]


def _shards(index: Path, repo: str, by_name: Mapping[str, RemoteFile]) -> list[str]:
    """The files with the weights, exactly those that the index names."""
    names = shards(index)
    for name in names:
        if name not in by_name:
            raise UserError(f"{repo}: {SHARDED} names {name!a}, which is not there")
    return names


def _fetch(
    hub: Hub, commit: str, file: RemoteFile, cached: Path | None, folder: Path, say: Callable[[str], None]
) -> None:
    path, partial = folder / file.path, folder / f"{PARTIAL}{file.path}"
    if path.exists():  # it got its name when it was complete and right
        return
    path.unlink(missing_ok=True)  # a link to what is no longer in that cache
    if cached is not None:
        path.symlink_to(cached)
        return
    if file.size > 10**7:
        say(f"fetching {file.path} of {hub.repo}, {size(file.size)}")
    hub.download(commit, file, partial, lambda count: None)
    partial.replace(path)
