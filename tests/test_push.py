"""`python -m ghost_jax.export --push_to`: what a hub gets, what it refuses, and that the token is shown nowhere."""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.hub import upload as hub
from ghost_jax.hub.weights import FILE
from tests.test_export import CHAT, V05, add_records, make_run

TOKEN = "hf_CanaryThatMustNeverBeSeen"
REPO = "someone/ghost-test"


class Hub(ThreadingHTTPServer):
    """The part of a model hub's HTTP API that an upload speaks, over repositories in memory.

    Attributes:
      repos: of each repository the content of its files.
      seen: method and path of every request.
      refuses: of a path's end the status and the words that it is answered with.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Api)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.refuses: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def env(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a command that speaks to this hub; the chunked protocol of the real one stays unused."""
        same = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return same | {"GHOST_OFFLINE": "0"} | more


class Api(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        """Says nothing."""

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_api(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        self.server.seen.append((self.command, path))
        for end, (status, words) in self.server.refuses.items():
            if path.endswith(end):
                return self.answer({"error": words}, status)
        if path.startswith("/storage/"):  # its address is the permission; no token is sent there
            self.server.objects[path.rpartition("/")[2]] = body
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.server.repos
            self.server.repos.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}"}, 409 if there else 200)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo = re.search(r"^(?:/api/models)?/([^/]+/[^/.]+)", path)[1]
        return self.of_repo(repo, path, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_api

    def of_repo(self, repo: str, path: str, body: bytes) -> None:
        if repo not in self.server.repos:
            return self.answer({"error": "Repository not found"}, 404)
        files = self.server.repos[repo]
        if path == f"/api/models/{repo}":
            tags = yaml.safe_load(files["README.md"].decode().split("---")[1])["tags"] if "README.md" in files else []
            self.answer({"id": repo, "tags": tags})
        elif found := re.search(r"/resolve/[^/]+/(.+)$", path):
            self.serve(files.get(found[1]))
        elif path.endswith("/tree/main"):
            self.answer([{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files])
        elif path.endswith("/preupload/main"):
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/storage/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                self.commit(files, line["key"], line["value"])
            self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({"error": f"not spoken here: {path}"}, 501)

    def serve(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content and self.command == "GET":
            self.wfile.write(content)

    def commit(self, files: dict[str, bytes], kind: str, value: dict) -> None:
        if kind == "file":
            files[value["path"]] = b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = self.server.objects[value["oid"]]
        elif kind == "deletedFile":
            del files[value["path"]]


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


@pytest.fixture
def command(tmp_path) -> tuple[str, ...]:
    """The command that exports a small run into `tmp_path / "out"` and pushes it."""
    make_run(tmp_path / "run", V05, CHAT)
    add_records(tmp_path / "run")
    return "ghost_jax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", f"--push_to={REPO}"


def test_an_export_is_uploaded_whole_and_its_token_shown_nowhere(ghost, command, server, tmp_path):
    result = ghost(*command, env=server.env(tmp_path / "home"))
    assert f"uploaded to {server.url}/{REPO}" in result.stdout
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert server.repos[REPO] == files
    assert {"README.md", "config.json", FILE, "tokenizer.json"} <= files.keys()
    assert hashlib.sha256(files[FILE]).hexdigest() in server.objects, "weights go by LFS"
    assert TOKEN not in result.stdout + result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_dry_run_sends_nothing_and_without_a_token_nothing_is_exported(ghost, command, server, tmp_path):
    dry = server.env(tmp_path / "home", HF_TOKEN="", GHOST_OFFLINE="1")
    bare = server.env(tmp_path / "home", HF_TOKEN="")
    said = ghost.together(
        {
            "dry": lambda: ghost(*command, "--dry_run", env=dry).stdout,
            "bare": lambda: ghost.refused(*command, f"--out={tmp_path / 'other'}", env=bare),
        }
    )
    for path in (tmp_path / "out").iterdir():
        assert re.search(rf"{path.stat().st_size:,}  {re.escape(path.name)}\n", said["dry"]), path.name
    assert f"Nothing was uploaded to {REPO}." in said["dry"]
    assert "There is no token to upload with" in said["bare"]
    assert not (tmp_path / "other").exists()
    assert server.seen == []


# ---- What the hub answers, without a process each ----


def config_of(run: str, step: int) -> bytes:
    return json.dumps({"ghost_jax": {"run": run, "step": step}}).encode()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes(config_of("ours", 30))
    (tmp_path / "out" / "README.md").write_text("---\ntags:\n- experimental\n---\n")
    (tmp_path / "out" / FILE).write_bytes(b"weights")
    return tmp_path / "out"


@pytest.fixture
def here(server, monkeypatch, tmp_path) -> Hub:
    """The hub as the one of this process."""
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.mark.parametrize(
    ("path", "status", "words", "expected"),
    [
        ("/api/repos/create", 403, "You may not write for someone", "403, You may not write for someone. The token"),
        ("/api/repos/create", 401, f"Bad token {TOKEN}", "401, Bad token …. It does not know the token"),
        (f"/api/models/{REPO}", 404, "Not here", "no such account or repository"),
        ("/preupload/main", 403, "Read only", "Give it the right to write"),
        ("/objects/batch", 403, "No room", "403, No room"),
        ("/commit/main", 400, "Bad card", "400, Bad card"),
    ],
)
def test_a_refusal_is_said_in_one_paragraph_without_the_token(path, status, words, expected, here, folder):
    here.refuses[path] = status, words
    with pytest.raises(UserError) as refusal:
        hub.push(folder, REPO, tag="experimental", keeps="canonical", above=None)
    said = str(refusal.value)
    assert expected in said
    assert here.url in said
    assert "\n" not in said.strip()
    assert TOKEN not in said
    assert not here.repos.get(REPO), "nothing was committed"


def test_an_upload_in_other_files_takes_the_old_weights_away(here, folder):
    # What is left of the first would be loaded in place of the second.
    here.repos[REPO] = {"model-00001-of-00009.safetensors": b"stale", "picture.png": b"theirs"}
    hub.push(folder, REPO, tag="experimental", keeps="canonical", above=None)
    assert here.repos[REPO].keys() == {"README.md", "config.json", FILE, "picture.png"}


def test_only_a_canonical_upload_replaces_a_canonical_one(here, folder):
    canonical = {"README.md": b"---\ntags:\n- canonical\n---\n"}
    here.repos[REPO] = dict(canonical)
    with pytest.raises(UserError, match="which this experimental one must not replace"):
        hub.push(folder, REPO, tag="experimental", keeps="canonical", above=None)
    assert here.repos[REPO] == canonical


@pytest.mark.parametrize(
    ("there", "above", "said"),
    [
        (config_of("best", 30), {"run": "best", "step": 30}, ""),
        (config_of("ours", 30), None, ""),
        (config_of("best", 30), None, "upload of best after update 30, and this one was not compared with it"),
        (config_of("best", 30), {"run": "best", "step": 20}, "upload of best after update 30"),
        (b"{}", {"run": "best", "step": 30}, "upload of a model that was not exported here"),
        (None, None, "upload of a model that was not exported here"),
    ],
)
def test_a_canonical_upload_replaces_the_one_that_it_was_shown_to_be_above_or_itself(there, above, said, here, folder):
    files = {"README.md": b"---\ntags:\n- canonical\n---\n"} | ({"config.json": there} if there else {})
    here.repos[REPO] = dict(files)
    if said:
        with pytest.raises(UserError, match=said):
            hub.push(folder, REPO, tag="canonical", keeps="canonical", above=above)
        assert here.repos[REPO] == files
    else:
        hub.push(folder, REPO, tag="canonical", keeps="canonical", above=above)
        assert here.repos[REPO]["config.json"] == config_of("ours", 30)


def test_a_hub_that_cannot_be_reached_is_named(here, folder, monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"The upload to http://127\.0\.0\.1:9 failed.*The exported folder is whole"):
        hub.push(folder, REPO, tag="experimental", keeps="canonical", above=None)


def test_forbidden_connections_are_not_tried(here, monkeypatch):
    monkeypatch.delenv("GHOST_OFFLINE", raising=False)
    hub.check_reachable()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="forbids connections"):
        hub.check_reachable()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    with pytest.raises(UserError, match="forbids connections"):
        hub.check_reachable()
    assert here.seen == []


def test_weights_that_the_store_refuses_are_not_committed(here, folder):
    oid = hashlib.sha256(b"weights").hexdigest()
    here.refuses[f"/storage/{oid}"] = 403, "expired"
    with pytest.raises(UserError, match="403"):
        hub.push(folder, REPO, tag="experimental", keeps="canonical", above=None)
    assert here.repos[REPO] == {}


@pytest.mark.parametrize("name", ["ghost", "a/b/c", "someone/", "/ghost", "some one/ghost", "someone/gh..ost"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match=re.escape(name)):
        hub.check_name(name)
