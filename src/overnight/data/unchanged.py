"""Whether a dataset's shards are still what `prepare` wrote: looked at before anything is computed with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from overnight.data.dataset import NAME, SPLITS, Manifest, fingerprint
from overnight.data.sizes import size
from overnight.errors import UserError
from overnight.files import sha256, write_json
from overnight.runs import read_json

RECORD = "shards.json"  # in a run folder
LARGE = 2**30  # bytes: hashing more takes a while, which is said
THREADS = 4  # that hash at once
Known = dict[str, dict[str, object]]
"""By path: size in bytes, time of the last change in ns and SHA-256 of files that were hashed."""


def require_unchanged(
    manifests: Iterable[Manifest],
    known: Known | None = None,
    splits: Sequence[str] = SPLITS,
    say: Callable[[str], None] = lambda text: None,
) -> Known:
    """Compares shards with the hashes in their manifests; a UserError names the first that has changed.

    A file of which `known` has the size, the time of change and the hash is not read again. Returns what is known now.
    Other programs' files have no hashes; their fingerprint, which samples them, is compared elsewhere.
    """
    expected: dict[Path, str] = {}
    for manifest in (one for one in manifests if not one.foreign):
        if fingerprint(manifest.tokenizer, manifest.dtype, manifest.splits) != manifest.fingerprint:
            raise UserError(
                f"{manifest.folder / NAME} was changed: its fingerprint does not fit what it lists; prepare the "
                "dataset anew"
            )
        for split in splits:
            hashes = [shard["sha256"] for shard in manifest.splits[split]["shards"]]
            expected |= dict(zip(manifest.shard_paths(split), hashes, strict=True))
    found = {str(path.resolve()): _stamp(path, hash) for path, hash in expected.items()}
    unread = [path for path in expected if (known or {}).get(str(path.resolve())) != found[str(path.resolve())]]
    if (total := sum(path.stat().st_size for path in unread)) > LARGE:
        say(f"comparing {size(total)} of shards with their hashes, once")
    with ThreadPoolExecutor(THREADS) as pool:
        for path, actual in zip(unread, pool.map(sha256, unread), strict=True):
            if actual != expected[path]:
                raise UserError(
                    f"{path} is not what was prepared: its SHA-256 is {actual[:16]}..., not {expected[path][:16]}...; "
                    "put it back, or prepare the dataset anew"
                )
    return found


def recorded(run: Path) -> Known:
    """What a run has compared before; nothing where that cannot be read."""
    with contextlib.suppress(UserError):
        return read_json(run / RECORD)
    return {}


def record(run: Path, known: Known) -> None:
    """Keeps what was compared for when the run goes on; without it that is done again."""
    if known != recorded(run):
        with contextlib.suppress(OSError):
            write_json(run / RECORD, known)


def _stamp(path: Path, hash: str) -> dict[str, object]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); prepare the dataset anew") from None
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": hash}
