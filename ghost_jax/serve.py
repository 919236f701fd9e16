"""Serves a run, or the lexical reader alone, over the OpenAI API: `python -m ghost_jax.serve`; see docs/serving.md."""

import argparse
import contextlib
import os
import socket
import sys
import types
from collections.abc import Sequence

import uvicorn

from evals.open_book.scoring import Book
from ghost_jax.core import jax_setup
from ghost_jax.core.errors import UsageError, UserError, command, parser_of, positive
from ghost_jax.core.object_store import path_of
from ghost_jax.runs import evaluation, run_dir
from ghost_jax.server.app import build
from ghost_jax.server.served import READER, Model, Served

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line. Raises UsageError for one that cannot be served."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--workdir", type=path_of, metavar="DIR", help="the run; without it the reader alone answers")
    add("--book", default="closed", metavar="BOOK", help="closed (default), open, or your files: FOLDER,cwe,…")
    add("--data_dir", type=path_of, metavar="DIR", help="folder with the book's raw/ (default: $GHOST_DATA)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0 for any free one (default: 8000)")
    add("--batch_size", type=positive, default=16, metavar="N", help="texts generated at once (default: 16)")
    add("--waiting", type=positive, default=64, metavar="N", help="requests that may queue beside them (default: 64)")
    answers = "of an answer, unless the request says (default: 256)"
    add("--max_new_tokens", type=positive, default=256, metavar="N", help=answers)
    add("--timeout", type=float, default=120, metavar="SECONDS", help="the longest that a request takes (default: 120)")
    flags = parser.parse_args(argv)
    if not flags.workdir and flags.book == "closed":
        raise UsageError("There is nothing to serve. Name a run with --workdir, or add --book=open.")
    if not 1 <= flags.timeout <= 86_400:
        raise UsageError(f"--timeout is {flags.timeout}; it must be 1 to 86,400 seconds.")
    if flags.host not in LOOPBACK and not os.environ.get("GHOST_API_KEY"):
        raise UsageError(
            f"--host={flags.host} can be reached from other machines. Set GHOST_API_KEY to the key that clients must "
            "send, or leave --host out."
        )
    return flags


class Server(uvicorn.Server):
    """Says that it ends, since requests that run may take a while."""

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        print("Ending: requests that run are finished, new ones refused.", flush=True)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError where the address is taken or not of this machine."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except (OSError, OverflowError) as fault:
        raise UserError(f"{host}:{port} cannot be listened on ({fault}). Choose another --host or --port.") from None


@command
def main(argv: Sequence[str]) -> int:
    """Serves a run, the open-book reader, or both, over the OpenAI API and a page in the browser."""
    flags = parse_flags(argv)
    with contextlib.closing(listen(flags.host, flags.port)) as listening:
        jax_setup.set_up()
        model, name, guesses, reader = None, READER, False, None
        if flags.workdir:
            model = Model.load(flags.workdir, rows=flags.batch_size, waiting=flags.waiting, most=flags.max_new_tokens)
            name = flags.workdir.resolve().name
            guesses = evaluation.only_guesses(flags.workdir)
        if flags.book != "closed":
            reader = Book.open(flags.book, flags.data_dir).reader
        if model:
            run_dir.say("compiling")
            model.scheduler.engine.warm_up()
        note = "Every score of this run is at chance or collapsed to one letter." if guesses else ""
        if guesses and reader:
            note += " The lines of the book answer for it."
        app = build(
            Served(name, model, reader, note, quotes=guesses and reader is not None),
            key=os.environ.get("GHOST_API_KEY", ""),
            seconds=flags.timeout,
            # Without a key another site's page must not reach it; behind a proxy it has any name, and a key.
            hosts=LOOPBACK if flags.host in LOOPBACK and not os.environ.get("GHOST_API_KEY") else (),
        )
        graceful = int(flags.timeout)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=graceful)
        shown = f"[{flags.host}]" if ":" in flags.host else flags.host
        print(f"{name} at http://{shown}:{listening.getsockname()[1]}. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has drained
            Server(config).run([listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
