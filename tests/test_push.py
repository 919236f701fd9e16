"""`python -m ghost_jax.export --push_to`: what is uploaded, what is refused, and that the token is shown nowhere."""

import re
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, Response

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.hub import upload
from ghost_jax.hub.weights import FILE

TOKEN = "hf_CanaryThatMustNeverBeSeen"
REPO = "someone/ghost-test"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that takes every upload; it checks the signatures of the calls. Its repository holds no upload yet."""
    api = mock.create_autospec(HfApi, instance=True, endpoint="http://hub")
    api.create_repo.return_value = f"http://hub/{REPO}"
    api.model_info.return_value.tags = []
    monkeypatch.setattr(upload, "HfApi", lambda token: api)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return api


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def push(folder: Path, channel: str = "experimental") -> str:
    return upload.push(folder, REPO, channel)


def test_an_export_is_uploaded_and_its_token_shown_nowhere(ghost, tiny_run, hub, tmp_path):
    out = tmp_path / "out"
    command = ("ghost_jax.export", f"--workdir={tiny_run.workdir}", f"--out={out}", f"--push_to={REPO}")
    online = {"HF_TOKEN": TOKEN, "GHOST_OFFLINE": "0"}
    assert "token" in ghost.refused_here(*command, env=online | {"HF_TOKEN": "", "HF_HOME": str(tmp_path)})
    assert not out.exists(), "refused before the export"
    dry = ghost.here(*command, "--dry_run", env={"HF_TOKEN": "", "GHOST_OFFLINE": "1"}).stdout
    for path in out.iterdir():
        assert re.search(rf"{path.stat().st_size:,}  {re.escape(path.name)}\n", dry)
    hub.upload_folder.assert_not_called()

    result = ghost.here(*command, "--force", env=online)
    assert f"http://hub/{REPO}" in result.stdout
    sent = hub.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["folder_path"]) == (REPO, out)
    assert "*.safetensors" in sent["delete_patterns"], "old weights would be loaded in place of the new ones"
    assert {"README.md", "config.json", FILE, "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert TOKEN not in result.stdout + result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def refusal(status: int, words: str) -> HfHubHTTPError:
    return HfHubHTTPError(f"{status}: {words}", response=Response(status, request=mock.Mock()))


@pytest.mark.parametrize("call", ["create_repo", "model_info", "upload_folder"])
def test_a_refusal_of_the_hub_is_reported_without_the_token(call, hub, folder):
    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = refusal(403, f"Bad token {TOKEN}")
    for fault in (refusal(403, f"Bad token {TOKEN}"), wrapped, ValueError("403")):
        getattr(hub, call).side_effect = fault
        with pytest.raises(UserError, match=r"http://hub.*403") as refused:
            push(folder)
        assert TOKEN not in str(refused.value)
    assert call == "upload_folder" or not hub.upload_folder.called


def test_only_a_canonical_upload_replaces_a_canonical_one(hub, folder):
    hub.model_info.return_value.tags = ["canonical"]
    with pytest.raises(UserError, match="canonical"):
        push(folder, "experimental")
    assert not hub.upload_folder.called
    push(folder, "canonical")
    assert hub.upload_folder.called


@pytest.mark.parametrize("name", ["ghost", "a/b/c", "someone/", "/ghost", "some one/ghost", "someone/gh..ost"])
def test_a_name_that_is_not_a_repository_is_refused(name):
    with pytest.raises(UsageError, match=re.escape(name)):
        upload.check_name(name)
