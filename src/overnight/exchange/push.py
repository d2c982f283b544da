"""An export put on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overnight.errors import UserError
from overnight.network.patience import http_library


def check(repo: str) -> None:
    """UserError for what is no USER/NAME, and where there is no token: before anything is computed."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined,unused-ignore]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: {' '.join(str(error).split())}") from None
    if repo.count("/") != 1:
        raise UserError(f"--push {repo}: write it as USER/NAME")
    if get_token() is None:
        raise UserError("--push needs a token that may write: set HF_TOKEN, or run `hf auth login`")


def push(folder: Path, repo: str, private: bool) -> str:
    """Puts all files of `folder` into the model repository `repo` in one commit; returns its address.

    The repository is made where there is none; files in it that `folder` does not have stay. UserError where the hub
    refuses, and where `private` is wanted of a repository that is public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _told(folder, repo, " --private" * private):
        api = HfApi(library_name="overnight")
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise UserError(f"{repo} is a public repository already: nothing was pushed; {folder} is complete")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
        api.create_commit(repo, operations, commit_message="Export from overnight")
    return str(url)


@contextmanager
def _told(folder: Path, repo: str, flag: str) -> Iterator[None]:
    """Turns what goes wrong into a UserError of one line."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        reason = f"it answers {error.response.status_code}: {error.server_message or 'no reason given'}"
    except (http_library().HTTPError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
    else:
        return
    reason = " ".join(reason.split()).rstrip(".")
    again = f"`hf upload {repo} {folder}{flag}` tries again"
    raise UserError(f"the hub did not take {repo}: {reason}; {folder} is complete, {again}")
