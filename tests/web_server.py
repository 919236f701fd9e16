"""Web servers on this machine that tests download from."""

import contextlib
import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator

PATH = "/thing.json"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        publisher = self.server
        publisher.asked.append((self.command, self.path, dict(self.headers)))
        content = publisher.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if publisher.ranges else None
        start = int(wanted[1]) if wanted else 0
        past_end = start >= len(content) > 0
        body = content[start:]
        self.send_response(416 if past_end else 206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        if wanted:
            part = "*" if past_end else f"{start}-{len(content) - 1}"
            self.send_header("Content-Range", f"bytes {part}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if publisher.cuts:
            publisher.cuts -= 1
            body, self.close_connection = body[: publisher.cut], True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


class Publisher(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}  # path -> what is served
        self.ranges = True  # whether parts are sent on request
        self.cut = self.cuts = 0  # bytes that are sent before the connection is closed, in the first `cuts` answers
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path and headers of every request

    def gets(self, path: str = PATH) -> list[str | None]:
        return [headers.get("Range") for method, asked, headers in self.asked if (method, asked) == ("GET", path)]


@contextlib.contextmanager
def publishing() -> Iterator[Publisher]:
    with Publisher() as publisher:
        threading.Thread(target=publisher.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield publisher
        publisher.shutdown()


DRIPS = (b"200 OK\r\nContent-Length: 1000000", 1, 0.5)  # of `endless`: no read of a byte times out


@contextlib.contextmanager
def endless(head: bytes, size: int = 1 << 16, pause: float = 0.0) -> Iterator[tuple[str, list[int]]]:
    """A server that answers with a head and then with blocks without end; yields its address and the bytes sent."""
    sent, block = [0], b"x" * size

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed, at the end
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(ConnectionError):
                    connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n")
                    while True:
                        connection.sendall(block)
                        sent[0] += len(block)
                        time.sleep(pause)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", sent
