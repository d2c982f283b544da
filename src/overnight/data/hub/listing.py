"""Which files of a hub repository are a configuration's split: by the dataset card, or by the files' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from overnight.data.formats import COMPRESSED, KNOWN, is_known, suffixes
from overnight.errors import UserError, suggestion
from overnight.network.remote_files import RemoteFile

SPLITS = {  # the words by which names of files and folders tell their split, as in the `datasets` library
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NOT_DATA = {"readme.md", "license.md", "license.txt", "requirements.txt", "changelog.md", "contributing.md"}
PARTIAL_SPLIT = "partial-"  # the hub's conversion to parquet, where it took only the beginning of a split
Configs = dict[str, dict[str, list[str]]]  # configuration: split: globs


@dataclass(frozen=True)
class Choice:
    """The files of a split, in their order."""

    config: str
    files: list[RemoteFile]


def usable(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those that may hold text: of known suffix, not hidden, not about the repository; sorted by path."""
    return sorted(
        (
            file
            for file in files
            if is_known(file.path)
            and PurePosixPath(file.path).name.lower() not in NOT_DATA
            and not any(part.startswith(".") for part in PurePosixPath(file.path).parts)
        ),
        key=lambda file: file.path,
    )


def by_card(configs: Configs, files: Sequence[RemoteFile], config: str | None, split: str, repo: str) -> Choice:
    """The files that the card names for a split of a configuration; UserError, with what there is, for another one."""
    name = _config(configs, config, repo)
    globs = configs[name]
    if split not in globs:
        raise UserError(f"{repo} has no split '{split}' in {name}{suggestion(split, globs)}; --split: {_list(globs)}")
    matching = [file for glob in globs[split] for file in _matching(glob, files)]
    known = set(usable(files))
    chosen = [file for file in dict.fromkeys(matching) if file in known]
    if not chosen:
        others = Counter(PurePosixPath(file.path).suffix or "no suffix" for file in matching)
        found = f"holds only {_list(others)}" if others else "names no file that is there"
        raise UserError(f"{repo}: the split '{split}' of {name} {found}; overnight reads {_formats()}")
    return Choice(name, chosen)


def by_names(files: Sequence[RemoteFile], config: str | None, split: str, repo: str) -> Choice:
    """The same for a repository whose card names no files: all of one format, split by the words in their paths."""
    if config not in (None, "default"):
        raise UserError(f"{repo} has no configuration '{config}'; --config: default")
    kinds = {kind: [file for file in files if suffixes(file.path)[0] == kind] for kind in reversed(KNOWN)}
    same = next(found for found in kinds.values() if found)  # parquet, else jsonl, else text
    for words in (_words_of_folders, _words_of_name):
        splits: dict[str, list[RemoteFile]] = {}
        for file in same:
            for found in {name for name, keys in SPLITS.items() if words(file.path) & set(keys)}:
                splits.setdefault(found, []).append(file)
        if splits:
            break
    else:
        splits = {"train": same}
    if split not in splits:
        raise UserError(f"{repo} has no split '{split}'{suggestion(split, splits)}; --split: {_list(splits)}")
    return Choice("default", splits[split])


def by_folders(files: Sequence[RemoteFile], config: str | None, split: str, repo: str) -> Choice:
    """The same for the hub's own conversion to parquet: CONFIG/SPLIT/0000.parquet."""
    configs: Configs = {}
    for file in files:
        parts = PurePosixPath(file.path).parts
        if len(parts) == 3:
            splits = configs.setdefault(parts[0], {})
            splits[parts[1].removeprefix(PARTIAL_SPLIT)] = [f"{parts[0]}/{parts[1]}/*"]
    return by_card(configs, files, config, split, repo)


def card_configs(card: Mapping[str, Any]) -> Configs:
    """The `configs:` of a dataset card; empty where it has none that name files."""
    found: Configs = {}
    entries = card.get("configs")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or "config_name" not in entry:
            continue
        folder = str(entry.get("data_dir") or "").strip("/")
        splits = _splits(entry.get("data_files") or (f"{folder}/**" if folder else None))
        if splits:
            found[str(entry["config_name"])] = splits
    return found


def card_default(card: Mapping[str, Any]) -> str | None:
    """The configuration that the card marks with `default: true`."""
    entries = card.get("configs")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("default") is True:
            return str(entry.get("config_name"))
    return None


def card_licence(card: Mapping[str, Any]) -> str | None:
    """As the card says it."""
    told = card.get("license")
    return ", ".join(map(str, told)) if isinstance(told, list) else None if told is None else str(told)


def _splits(data_files: Any) -> dict[str, list[str]]:
    """`data_files` in one of its shapes: a glob, a list of them, {split: globs}, [{split, path}]."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, dict):
        return {str(split): _globs(paths) for split, paths in data_files.items()}
    splits: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, dict):
            splits.setdefault(str(entry.get("split", "train")), []).extend(_globs(entry.get("path", [])))
        else:
            splits.setdefault("train", []).append(str(entry))
    return splits


def _globs(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths]


def _config(configs: Configs, asked: str | None, repo: str) -> str:
    """The configuration's name: the one asked for, else the card's default, `default`, or the only one."""
    if asked is not None:
        if asked not in configs:
            raise UserError(
                f"{repo} has no configuration '{asked}'{suggestion(asked, configs)}; --config: {_list(configs)}"
            )
        return asked
    if "default" in configs or len(configs) == 1:
        return "default" if "default" in configs else next(iter(configs))
    raise UserError(f"{repo} has {len(configs)} configurations; choose one with --config: {_list(configs)}")


def _matching(glob: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """In the order of their paths; `*` stays within a folder, `**` does not."""
    from fsspec.utils import glob_translate

    pattern = re.compile(glob_translate(glob.removeprefix("./").lstrip("/")))
    return sorted((file for file in files if pattern.match(file.path)), key=lambda file: file.path)


def _words_of_folders(path: str) -> set[str]:
    return {word for folder in PurePosixPath(path).parts[:-1] for word in _words(folder)}


def _words_of_name(path: str) -> set[str]:
    return _words(PurePosixPath(path).name)


def _words(name: str) -> set[str]:
    return set(re.split(r"[-._ 0-9]", name))


def _list(names: Iterable[str], most: int = 12) -> str:
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _formats() -> str:
    return f"{', '.join(KNOWN)}, and {' and '.join(COMPRESSED)} of all but parquet"
