"""What is asked of a hub, through huggingface_hub: commits, listings, files; each error as one line.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE hold as they do there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from overnight.errors import UserError
from overnight.files import sync
from overnight.network.patience import GaveUp, Interrupted, Patience, Watch, http_library, patiently, seconds
from overnight.network.remote_files import RemoteFile, has_hash, within

Result = TypeVar("Result")
Tick = Callable[[int], None]  # bytes that arrived


class Unreachable(UserError):
    """The server did not answer for as long as patience lasts."""


class Hub:
    """One repository, of kind `dataset` or `model`, on one server."""

    def __init__(self, repo: str, kind: str = "dataset") -> None:
        self.repo, self.kind = repo, kind
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        self.reached = threading.Event()
        self.stop = threading.Event()
        self.patience = seconds()

    @property
    def host(self) -> str:
        from huggingface_hub import constants

        return self.endpoint or str(constants.ENDPOINT)

    @property
    def offline(self) -> bool:
        """Whether HF_HUB_OFFLINE forbids requests."""
        from huggingface_hub import constants

        return constants.is_offline_mode()

    def snapshot(self, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """The commit and the files that the cache of huggingface_hub holds of a revision; UserError for none."""
        from huggingface_hub import CacheNotFound, constants, scan_cache_dir

        asked = revision or "main"
        try:
            kept = scan_cache_dir(constants.HF_HUB_CACHE).repos  # where downloads look, too
            repos = [repo for repo in kept if repo.repo_id == self.repo and repo.repo_type == self.kind]
        except CacheNotFound:
            repos = []
        for found in (found for repo in repos for found in repo.revisions):
            if asked in found.refs or asked == found.commit_hash:
                return found.commit_hash, [
                    # a blob is named by the hash of its content
                    RemoteFile(file.file_path.relative_to(found.snapshot_path).as_posix(), file.size_on_disk, name)
                    for file in found.files
                    if len(name := file.blob_path.name) in (40, 64)
                ]
        raise UserError(f"HF_HUB_OFFLINE is set, and {self.repo} at {asked} is not in the cache of the hub; unset it")

    def commit(self, revision: str | None) -> str:
        """The commit that a branch or tag stands for now."""

        def asked() -> str:
            return str(self._api().repo_info(self.repo, revision=revision, repo_type=self.kind).sha)

        return self._ask(asked, revision)

    def tree(self, commit: str) -> list[RemoteFile]:
        """All files of a commit, with sizes and hashes."""
        from huggingface_hub.hf_api import RepoFile

        def listed() -> list[RemoteFile]:
            found = self._api().list_repo_tree(self.repo, recursive=True, revision=commit, repo_type=self.kind)
            return [
                RemoteFile(file.path, file.lfs.size, file.lfs.sha256)
                if file.lfs
                else RemoteFile(file.path, file.size, file.blob_id)
                for file in found
                if isinstance(file, RepoFile)
            ]

        return within(self._ask(listed, commit), self.host)

    def content(self, commit: str, path: str, last: int | None = None) -> bytes:
        """A small file, or the `last` bytes of any."""
        headers = self._headers() | ({} if last is None else {"Range": f"bytes=-{last}"})

        def get() -> bytes:
            from huggingface_hub import get_session, hf_raise_for_status

            response = get_session().get(
                self._url(commit, path), headers=headers, timeout=_timeout(), follow_redirects=True
            )
            hf_raise_for_status(response)
            content: bytes = response.content
            return content if last is None else content[-last:]

        return self._ask(get, commit, path)

    def cached(self, commit: str, path: str) -> Path | None:
        """Where the cache of huggingface_hub holds this file."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, path, revision=commit, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    def download(self, commit: str, file: RemoteFile, partial: Path, tick: Tick) -> None:
        """The file's bytes into `partial`, after those that are there; they are checked against its hash.

        What has another hash is deleted and fetched once more. Raises UserError where it cannot be had.
        """
        patience = Patience(self.patience, self.stop)
        for _ in range(2):
            with self._told(commit, file.path):
                patiently(lambda: self._receive(commit, file, partial, patience, tick), patience, self.reached)
            if has_hash(partial, file):
                sync(partial)
                return
            partial.unlink()
        kind = "SHA-256" if len(file.hash) == 64 else "git SHA-1"
        raise UserError(
            f"{file.path} of {self.repo}: what {self.host} gave does not have the {kind} that it lists, twice; "
            "nothing of it was kept; try again later, or name a mirror with HF_ENDPOINT"
        )

    def _receive(self, commit: str, file: RemoteFile, partial: Path, patience: Patience, tick: Tick) -> None:
        """One request, for what is missing yet."""
        from huggingface_hub import get_session, hf_raise_for_status

        there = partial.stat().st_size if partial.exists() else 0
        if there > file.size:
            there = 0
        if there == file.size and partial.exists():
            return
        headers = self._headers() | ({"Range": f"bytes={there}-"} if there else {})
        url, wait = self._url(commit, file.path), _timeout()
        with get_session().stream("GET", url, headers=headers, timeout=wait, follow_redirects=True) as response:
            if response.is_error:
                self._refuse_elsewhere(response)
                hf_raise_for_status(response)
            self.reached.set()
            # a server that takes no ranges sends all from the beginning
            goes_on = response.status_code == 206
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                raise Interrupted("it sent another part of the file than was asked for")
            watch = Watch(patience, 0 if goes_on else there)
            # not buffered: what has arrived outlives a kill
            with partial.open("ab" if goes_on else "wb", buffering=0) as target:
                for block in response.iter_bytes():
                    target.write(block)
                    tick(len(block))
                    watch.arrived(len(block))
                    if target.tell() > file.size:
                        return  # something else, which may have no end; the hash will tell
        if (now := partial.stat().st_size) != file.size:
            raise Interrupted(f"it sent {now:,} of {file.size:,} bytes")

    def _refuse_elsewhere(self, response: Any) -> None:
        """An address on another host is good for a while only: it is asked for again."""
        answering = urlsplit(str(response.url)).netloc
        if response.status_code in (401, 403) and answering != urlsplit(self.host).netloc:
            raise Interrupted(f"{answering} answers {response.status_code}")

    def _api(self) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging

        if "HF_HUB_VERBOSITY" not in os.environ:
            logging.set_verbosity(40)  # errors: its warnings are about tries that we repeat
        return HfApi(endpoint=self.endpoint)

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined,unused-ignore]

        # the size and the hash are those of the plain content
        return {**build_hf_headers(library_name="overnight"), "Accept-Encoding": "identity"}

    def _url(self, commit: str, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.repo, path, repo_type=self.kind, revision=commit, endpoint=self.endpoint))

    def _ask(self, attempt: Callable[[], Result], revision: str | None, path: str = "") -> Result:
        with self._told(revision, path):
            return patiently(attempt, Patience(self.patience, self.stop), self.reached)

    @contextmanager
    def _told(self, revision: str | None, path: str) -> Iterator[None]:
        """Turns what goes wrong into a UserError of one line."""
        httpx = http_library()
        from huggingface_hub import errors

        page = f"{self.host}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"
        what = f"{path} of {self.repo}" if path else self.repo
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise UserError(f"HF_HUB_OFFLINE is set, and {what} is not in the cache of the hub; unset it") from None
        except errors.GatedRepoError:
            raise UserError(
                f"{self.repo} is gated: accept its terms on {page}, and set HF_TOKEN to a token of that account"
            ) from None
        except errors.RevisionNotFoundError:
            raise UserError(
                f"{self.repo} has no revision '{revision}'; --revision takes a branch, a tag or a commit"
            ) from None
        except errors.EntryNotFoundError:
            raise UserError(f"{path} is not in {self.repo} at {revision}") from None
        except errors.HfHubHTTPError as error:
            raise UserError(self._refused(error.response.status_code, what, page)) from None
        except GaveUp as reason:
            raise Unreachable(
                f"{what} cannot be fetched from {self.host} ({reason}); connect to a network, or name a mirror "
                "with HF_ENDPOINT; the same command goes on"
            ) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UserError(f"HF_ENDPOINT is '{self.host}', which is no address ({error})") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.host} does not answer as a hub does, for {what}; look at HF_ENDPOINT") from None

    def _refused(self, status: int, what: str, page: str) -> str:
        from huggingface_hub import get_token

        if status in (401, 403):
            own = "the token in HF_TOKEN or HF_HOME is not allowed to read it" if get_token() else "it needs a token"
            return (
                f"{what}: {self.host} answers {status}: {own}, or there is no such {self.kind}; accept its terms on "
                f"{page} where it has some, and set HF_TOKEN"
            )
        if status == 404 and what != self.repo:
            return f"{self.host} has no {what} (404); try again later, or name a mirror with HF_ENDPOINT"
        if status == 404:
            return f"{self.host} has no {self.kind} {self.repo} that all may read (404); for a private one set HF_TOKEN"
        return f"{what}: {self.host} answers {status}; try again later"


def _timeout() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
