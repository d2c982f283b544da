"""The dataset folder as its readers see it: the manifest, checked, and the files that it names.

The format is described in docs/formats.md. A folder of another program's token files has no manifest.json; it is
given one in memory, so that whatever reads datasets reads those as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

    from overnight.tokenizers import Tokenizer

FORMAT, VERSION = "overnight-dataset", 1
NAME = "manifest.json"
SPLITS = ("train", "val")
Json = dict[str, Any]

_FIELDS = {
    "tokenizer": dict,
    "dtype": str,
    "splits": dict,
    "sources": list,
    "settings": dict,
    "totals": dict,
    "fingerprint": str,
}
AMOUNTS = ("tokens", "documents", "bytes")
_SHARD_FIELDS = {
    "file": str,
    **dict.fromkeys(AMOUNTS, int),
    "sha256": str,
    "documents_file": str,
    "documents_sha256": str,
}


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says; the fields are those of docs/formats.md."""

    folder: Path
    tokenizer: Json
    dtype: str
    splits: dict[str, Json]
    sources: list[Json]
    settings: Json
    totals: Json
    fingerprint: str
    format: str = FORMAT
    """Another program's name where the folder is one of its token files: documents and bytes are None there."""
    tokenizer_json: str | None = None
    """What tokenizer.json would hold, where the folder has something else for it."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks a folder's manifest, and nothing else in it; without one, what token files are there.

        Raises UserError in one line where there is neither, or what is there is not what this version can read.
        """
        path = folder / NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            from overnight.data.foreign.folder import read_foreign

            if (found := read_foreign(folder)) is not None:
                return found
            raise UserError(_why_absent(folder)) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({error}); prepare the dataset anew") from None
        return cls(folder=folder, **_checked(path, content))

    def to_json(self) -> Json:
        """The content of manifest.json."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return {"format": self.format, "version": VERSION, **fields}

    @property
    def foreign(self) -> bool:
        """Whether the token files are another program's."""
        return self.format != FORMAT

    def shard_paths(self, split: str) -> list[Path]:
        """The token files of a split, in the order in which they make one stream."""
        return [self.folder / shard["file"] for shard in self.splits[split]["shards"]]


def fingerprint(tokenizer: Mapping[str, Any], dtype: str, splits: Mapping[str, Json]) -> str:
    """The SHA-256, in hexadecimal, that stands for all that a training reads from a dataset folder."""
    hashes = {name: [shard["sha256"] for shard in split["shards"]] for name, split in splits.items()}
    content = {"tokenizer": dict(tokenizer), "dtype": dtype, "splits": hashes}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_shards(manifest: Manifest, split: str) -> Sequence[Path | npt.NDArray[Any]]:
    """A split's shards in order, as a `TokenStream` takes them: .npy files, or another program's mapped files."""
    if not manifest.foreign:
        return manifest.shard_paths(split)
    from overnight.data.foreign.files import mapped

    return mapped(manifest, split)


def load_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that the folder's tokens were made with; UserError where it is not as the manifest says."""
    from overnight.tokenizers import load, loads

    name, file, size = (manifest.tokenizer[key] for key in ("name", "file", "vocab_size"))
    if manifest.tokenizer_json is not None:
        found = loads(name, manifest.tokenizer_json)
    else:
        found = load(name, manifest.folder / file if file else None)
    if found.vocab_size != size:
        raise UserError(
            f"{manifest.folder}: its manifest says {size:,} ids, and its tokenizer {name} has {found.vocab_size:,}"
        )
    return found


def _why_absent(folder: Path) -> str:
    if not folder.exists():
        return f"there is no dataset folder {folder}; `overnight prepare SOURCE --out {folder}` writes one"
    if not folder.is_dir():
        return f"{folder} is a file: a dataset is a folder that `overnight prepare` has written"
    if (folder / ".work").exists():
        return f"{folder} is an unfinished `overnight prepare`: the same command completes it"
    return (
        f"{folder} is not a dataset folder: it has no {NAME}, which `overnight prepare` writes, and no token files of "
        "nanoGPT, build-nanogpt or llm.c"
    )


def _checked(path: Path, content: Any) -> Json:
    """The fields of a manifest whose shape is right; UserError otherwise."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a dataset: its format is not '{FORMAT}'")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} has version {content.get('version')!r}, this overnight reads version {VERSION}; "
            "prepare the dataset anew or install the overnight that wrote it"
        )
    _require(path, "", content, _FIELDS)
    _require(path, "tokenizer.", content["tokenizer"], {"name": str, "vocab_size": int})
    if (file := content["tokenizer"].setdefault("file", None)) is not None:
        _plain_name(path, file)
    content["tokenizer"].setdefault("end_of_text", None)
    for split in SPLITS:
        described = content["splits"].get(split)
        where = f"splits.{split}."
        if not isinstance(described, dict):
            raise UserError(f"{path} lacks '{where[:-1]}'; prepare the dataset anew")
        _require(path, where, described, {**dict.fromkeys(AMOUNTS, int), "shards": list})
        for number, shard in enumerate(described["shards"]):
            _require(path, f"{where}shards[{number}].", shard, _SHARD_FIELDS)
            _plain_name(path, shard["file"])
            _plain_name(path, shard["documents_file"])
        for field in AMOUNTS:
            amounts = [shard[field] for shard in described["shards"]]
            if min(amounts, default=0) < 0 or sum(amounts) != described[field]:
                raise UserError(f"{path} was changed: the {field} of split {split} are not those of its shards")
    _require(path, "totals.", content["totals"], dict.fromkeys([*AMOUNTS, *content["totals"]], int))
    for number, source in enumerate(content["sources"]):
        _require(path, f"sources[{number}].", source, {"name": str})
        counted = {name: int for name in ("files", "bytes", "skipped") if source.get(name) is not None}
        _require(path, f"sources[{number}].", source, counted)
    return {name: content[name] for name in _FIELDS}


def _require(path: Path, where: str, content: Any, fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise UserError(
                f"{path} lacks '{where}{name}', or it is not of type {kind.__name__}; prepare the dataset anew"
            )


def _plain_name(path: Path, name: Any) -> None:
    """A manifest names files beside it: a stranger's must not lead elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name:
        raise UserError(f"{path} names a file outside its folder: {name!r}")
