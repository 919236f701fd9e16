"""An exported folder to a model hub: checked before the export, uploaded after it with huggingface_hub.

The hub is the one that HF_ENDPOINT names and the token the one that huggingface_hub finds: HF_TOKEN, or what
`hf auth login` left. The token is sent to the hub and shown nowhere.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OIDCError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ghost_jax.core.atomic_io import read_text
from ghost_jax.core.errors import UsageError, UserError

# An earlier upload in other files would be loaded in place of this one.
STALE = ["*.safetensors", "*.safetensors.index.json"]
ADVICE = {
    401: "It does not know the token. Log in again with `hf auth login`, or set HF_TOKEN to a valid token.",
    403: "The token may not write there. Give it the right to write, or name a repository of your own.",
    404: "There is no such account or repository, or the token may not see it.",
    429: "It has had too many requests. Wait a while, and repeat the command.",
}


def check_name(repo: str) -> None:
    """Raises UsageError where `repo` is no OWNER/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise UsageError(f"--push_to={repo} is no name of a repository: {fault}") from None
    if not re.fullmatch(r"[^/]+/[^/]+", repo):
        raise UsageError(f"--push_to={repo} names no owner. Write OWNER/NAME.")


def check_reachable() -> None:
    """Raises UserError where nothing can be uploaded: connections are forbidden, or there is no token."""
    if os.environ.get("GHOST_OFFLINE") == "1" or constants.is_offline_mode():
        raise UserError(
            "Nothing can be uploaded: GHOST_OFFLINE=1 or HF_HUB_OFFLINE=1 forbids connections. Unset it, or leave "
            "--push_to out and upload the folder yourself."
        )
    _token()


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Returns name and size in bytes of each file that an upload of `folder` sends."""
    return sorted((path.name, path.stat().st_size) for path in folder.iterdir())


def push(folder: Path, repo: str, tag: str, keeps: str, above: Mapping | None) -> str:
    """Uploads a folder into a model repository, which is made where there is none; returns its address.

    Args:
      tag: what its card is tagged with, and the commit named after.
      keeps: the tag of uploads that only one of the same tag may replace.
      above: the run and step that this one was shown to be above, of such an upload the only one it may replace.

    Raises UserError where the hub cannot be reached, refuses, or holds an upload that may not be replaced.
    """
    token = _token()
    hub = HfApi(token=token)
    with _explained(hub.endpoint, token):
        address = str(hub.create_repo(repo, exist_ok=True))
        there = hub.model_info(repo).tags or []
    if keeps in there and tag != keeps:
        raise UserError(
            f"{address} holds a {keeps} upload, which this {tag} one must not replace. Nothing was uploaded. Name "
            "another repository with --push_to."
        )
    if keeps in there:
        with _explained(hub.endpoint, token):
            known = hub.file_exists(repo, "config.json")
            found = _made_of(Path(hub.hf_hub_download(repo, "config.json"))) if known else {}
        if not found or found not in (_made_of(folder / "config.json"), above):
            run = f"{found['run']} after update {found['step']:,}" if found else "a model that was not exported here"
            raise UserError(
                f"{address} holds the {keeps} upload of {run}, and this one was not compared with it. Nothing was "
                "uploaded. Give that run's directory with --present, or name another repository with --push_to."
            )
    with _explained(hub.endpoint, token):
        hub.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Upload a {tag} export", delete_patterns=STALE
        )
    return address


def _made_of(config: Path) -> dict:
    """Returns run and step of an exported config.json, nothing of one that we did not export."""
    told = json.loads(read_text(config)).get("ghost_jax", {})
    return {key: told[key] for key in ("run", "step")} if told.keys() >= {"run", "step"} else {}


def _token() -> str:
    try:
        token = get_token()
    except (HTTPError, OIDCError) as fault:
        raise UserError(f"No token could be had for the upload ({type(fault).__name__}). Set HF_TOKEN.") from None
    if not token:
        raise UserError(
            "There is no token to upload with. Log in with `hf auth login`, or set HF_TOKEN to one that may write."
        )
    return token


@contextlib.contextmanager
def _explained(endpoint: str, token: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a UserError, and keeps the token out of it."""
    try:
        yield
    # It wraps an error of one file in a RuntimeError, and gives its own ValueErrors for answers that make no sense.
    except (HTTPError, OSError, RuntimeError, ValueError) as fault:
        cause = fault.__cause__ if isinstance(fault, RuntimeError) and fault.__cause__ else fault
        what, advice = _said(cause)
        raise UserError(
            f"The upload to {endpoint} failed: {what}. {advice} The exported folder is whole; with --force the same "
            "command makes and uploads it anew.".replace(token, "…")
        ) from None


def _said(fault: BaseException) -> tuple[str, str]:
    """Returns what went wrong and what to do about it, in words."""
    if not isinstance(fault, HfHubHTTPError):
        what = str(fault).strip().rstrip(".") or type(fault).__name__
        return what, "Check the connection and HF_ENDPOINT."
    status = fault.response.status_code
    says = (fault.server_message or "").strip().rstrip(".")
    what = f"it answered {status}" + (f", {says}" if says else "")
    return what, ADVICE.get(status, "Repeat the command later.")
