"""What a hub has of a configuration's split at one commit: asked for once, then kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from overnight.data.hub.listing import (
    PARTIAL_SPLIT,
    by_card,
    by_folders,
    by_names,
    card_configs,
    card_default,
    card_licence,
    usable,
)
from overnight.errors import UserError
from overnight.network.hub import Hub
from overnight.network.remote_files import RemoteFile

CONVERTED = "refs/convert/parquet"  # the branch with the hub's own conversion
CARD = "README.md"


@dataclass(frozen=True)
class Listing:
    """What was found of a configuration's split at one commit."""

    repo: str
    config: str
    split: str
    revision: str
    """The commit."""
    licence: str | None
    files: list[RemoteFile]
    converted: bool = False
    """Whether it is the hub's own conversion to parquet."""
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def find(hub: Hub, config: str | None, split: str, revision: str | None) -> Listing:
    """The files of a split at a branch, tag or commit; UserError, with what there is, where it has none."""
    notes = []
    if hub.offline:
        commit, every = hub.snapshot(revision)
        notes.append("HF_HUB_OFFLINE is set: only what the cache of the hub holds of this commit")
    else:
        commit = hub.commit(revision)
        every = hub.tree(commit)
    card = _card(hub, commit, every)
    files, configs, licence = usable(every), card_configs(card), card_licence(card)
    if configs:
        choice = by_card(configs, every, config or card_default(card), split, hub.repo)
    elif files:
        choice = by_names(files, config, split, hub.repo)
    else:
        return replace(find_converted(hub, config, split, CONVERTED), licence=licence)
    return Listing(hub.repo, choice.config, split, commit, licence, choice.files, notes=notes)


def find_converted(hub: Hub, config: str | None, split: str, revision: str) -> Listing:
    """The hub's own conversion of a repository that holds no files of a format that we know."""
    try:
        commit = hub.commit(revision)
    except UserError as error:
        if "no revision" not in str(error):
            raise
        raise UserError(
            f"{hub.repo} holds no files that overnight reads, and the hub has made no parquet of it "
            f"(there is no {CONVERTED})"
        ) from None
    choice = by_folders(usable(hub.tree(commit)), config, split, hub.repo)
    notes = [f"from the hub's own conversion to parquet ({CONVERTED})"]
    if any(f"/{PARTIAL_SPLIT}" in file.path for file in choice.files):
        notes.append("the hub converted only the beginning of this split: the rest is not in it")
    return Listing(hub.repo, choice.config, split, commit, None, choice.files, converted=True, notes=notes)


def find_again(hub: Hub, described: dict[str, Any]) -> Listing:
    """What a manifest describes, at its commit."""
    again = find_converted if described["converted"] else find
    found = again(hub, described["config"], described["split"], described["revision"])
    return replace(found, licence=described["licence"])


def _card(hub: Hub, commit: str, files: list[RemoteFile]) -> dict[str, Any]:
    """The YAML at the head of the dataset card; empty where there is none that can be read."""
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    if all(file.path != CARD for file in files):
        return {}
    cached = hub.cached(commit, CARD)
    content = cached.read_bytes() if cached else hub.content(commit, CARD)
    try:
        text = content.decode(errors="replace").removeprefix("\ufeff")
        card: Any = DatasetCard(text, ignore_metadata_errors=True)
        return dict(card.data.to_dict())
    except (YAMLError, ValueError, TypeError, RecursionError):
        return {}
