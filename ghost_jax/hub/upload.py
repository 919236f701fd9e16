"""Upload of an exported folder to a model hub with huggingface_hub.

HF_ENDPOINT names the hub. The token is HF_TOKEN, or what `hf auth login` left; it is sent to the hub and shown nowhere.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.hub.card import CANONICAL

STALE = ["*.safetensors", "*.safetensors.index.json"]  # of an earlier upload: they would be loaded in place of this one


def check_name(repo: str) -> None:
    """Raises UsageError where `repo` is not OWNER/NAME."""
    with contextlib.suppress(HFValidationError):
        validate_repo_id(repo)
        if re.fullmatch(r"[^/]+/[^/]+", repo):
            return
    raise UsageError(f"--push_to={repo} is not a repository. Write OWNER/NAME.")


def check_reachable() -> None:
    """Raises UserError where connections are forbidden or there is no token."""
    if os.environ.get("GHOST_OFFLINE") == "1" or constants.is_offline_mode():
        raise UserError(
            "Nothing can be uploaded: GHOST_OFFLINE=1 or HF_HUB_OFFLINE=1 forbids connections. Unset it, or leave "
            "--push_to out and upload the folder yourself."
        )
    _token()


def push(folder: Path, repo: str, channel: str) -> str:
    """Uploads a folder into a model repository, which is created where there is none; returns its address.

    Args:
      channel: a tag of the card. Only a canonical upload may replace a canonical one.

    Raises UserError where the hub cannot be reached, refuses, or holds an upload that may not be replaced.
    """
    token = _token()
    hub = HfApi(token=token)
    with _explained(hub.endpoint, token):
        address = str(hub.create_repo(repo, exist_ok=True))
        if channel != CANONICAL and CANONICAL in (hub.model_info(repo).tags or []):
            raise UserError(
                f"{address} holds a canonical model, and this one is {channel}. Nothing was uploaded. Name another "
                "repository."
            )
        message = f"Upload a {channel} export"
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=STALE)
    return address


def _token() -> str:
    if token := get_token():
        return token
    raise UserError("There is no token to upload with. Log in with `hf auth login`, or set HF_TOKEN.")


@contextlib.contextmanager
def _explained(endpoint: str, token: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a UserError without the token."""
    try:
        yield
    # The library wraps an error of one file in a RuntimeError, and raises ValueError for answers it cannot read.
    except (HTTPError, OSError, RuntimeError, ValueError) as fault:
        cause = fault.__cause__ if isinstance(fault, RuntimeError) and fault.__cause__ else fault
        raise UserError(
            f"The upload to {endpoint} failed: {cause or type(cause).__name__}. Check the connection, HF_ENDPOINT, the "
            "repository's name and that the token may write there. The exported folder is complete; with --force the "
            "same command exports and uploads it again.".replace(token, "…")
        ) from None
