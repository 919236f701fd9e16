"""Servers of object stores for tests: moto for S3 and gcp-storage-emulator for GCS, which fail on request.

    python -m tests.store_servers s3|gs PORT FOLDER

Files in FOLDER make every request slow (`slow`: seconds), refuse writes of names that hold a text (`deny`), or answer
as if the bucket was deleted (`gone`). The emulator of GCS ignores preconditions and names no generation in downloads;
both are added here.
"""

import io
import json
import re
import sys
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

WRITES = ("PUT", "POST")


def refusal(faults: Path, method: str, url: str) -> tuple[int, str] | None:
    """Sleeps as asked; returns the status and the code of an error where one is asked for."""
    if (slow := faults / "slow").is_file():
        time.sleep(float(slow.read_text()))
    if (faults / "gone").is_file():
        return 404, "NoSuchBucket"
    if method in WRITES and (deny := faults / "deny").is_file() and deny.read_text() in unquote(url):
        return 403, "AccessDenied"
    return None


def serve_s3(port: int, faults: Path) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    backend = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict, start_response) -> list[bytes]:
        found = refusal(faults, environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if found is None:
            return backend(environ, start_response)
        status, code = found
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{status} {code}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]

    run_simple("127.0.0.1", port, application, threaded=True)


def serve_gcs(port: int, faults: Path) -> None:
    from gcp_storage_emulator import server

    def current(handler, body: bytes = b"") -> tuple[str | None, dict]:
        """Returns the generation of the object of a request, "0" for none, and the request's query."""
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.split("/")
        bucket = parts[parts.index("b") + 1] if "b" in parts else ""
        name = query.get("name") or unquote(parts[parts.index("o") + 1] if "o" in parts[:-1] else "")
        if query.get("uploadType") == "multipart":
            name = json.loads(re.search(rb'"name": *("[^"]*")', body)[1])
        try:
            return handler.storage.get_file_obj(bucket, name)["generation"], query
        except Exception:  # the emulator's own kinds
            return "0", query

    handle, close = server.Router.handle, server.Response.close

    def checked(self, method: str) -> None:
        handler = self._request_handler
        found = refusal(faults, method, handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.rfile = io.BytesIO(body)  # of one request: the emulator closes the connection after it
        generation, query = current(handler, body)
        if found is None and query.get("ifGenerationMatch", generation) != generation:
            found = 412, "conditionNotMet"
        if found is None:
            handle(self, method)
            return
        response = server.Response(handler)
        response.status = HTTPStatus(found[0])
        response.json({"error": {"code": found[0], "message": found[1], "errors": [{"reason": found[1]}]}})
        close(response)

    def with_generation(self) -> None:
        if "alt=media" in self._handler.path and (generation := current(self._handler)[0]) != "0":
            self["x-goog-generation"] = generation
        close(self)

    server.Router.handle, server.Response.close = checked, with_generation
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    {"s3": serve_s3, "gs": serve_gcs}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
