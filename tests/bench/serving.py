"""Load on the server beside `transformers serve`: `python -m tests.bench.serving --out=FILE`.

Both serve the same random mini model, one after the other. Each of 32 clients asks, waits for the answer and asks
again, until the time is over; every answer has the same number of tokens.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import requests

from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path
from ghost_jax.data.sources import embedded
from ghost_jax.export import write_model
from ghost_jax.model.config import SIZES
from ghost_jax.text import tokenizer as tokenizer_lib
from tests.bench.subject import machine
from tests.test_export import make_run

NEW_TOKENS = 32
START = 120  # seconds that a server may take to answer its first request
SIDES = {"ghost_jax": ["ghost_jax.serve", "--waiting=256"], "transformers": ["transformers.cli.transformers", "serve"]}


@contextlib.contextmanager
def serving(side: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Starts a server of the run, or of its export, in `folder`; yields its address and the name of its model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours = side == "ghost_jax"
    where = [f"--workdir={folder / 'run'}"] if ours else [folder / "export", "--host=127.0.0.1", "--device=cpu"]
    words = [sys.executable, "-m", *SIDES[side], *map(str, where), f"--port={port}"]
    with subprocess.Popen(words, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL) as process:
        address, model = f"http://127.0.0.1:{port}/v1/chat/completions", "run" if ours else str(folder / "export")
        until = time.monotonic() + START
        try:
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(requests.ConnectionError):
                    if ask(address, model, "Hello?").ok:
                        break
                time.sleep(0.5)
            yield address, model
        finally:
            process.terminate()
            process.wait(START)


def ask(address: str, model: str, question: str) -> requests.Response:
    """Returns the answer to a question."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0}
    return requests.post(address, json=body, timeout=START)


def load(address: str, model: str, clients: int, seconds: float) -> dict:
    """Returns answers, failures, latencies in seconds and tokens a second of clients that ask without a pause."""
    words, latencies, failed, tokens = embedded.anchors(), [], [], []
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            start = time.monotonic()
            answer = ask(address, model, " ".join(rng.choices(list(words), k=rng.randint(5, 40))))
            if not answer.ok:
                failed.append(answer.status_code)
                continue
            latencies.append(time.monotonic() - start)
            tokens.append(answer.json()["usage"]["completion_tokens"])

    start = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p95 = np.percentile(latencies, (50, 95)).tolist()
    rate = sum(tokens) / (time.monotonic() - start)
    return {"answers": len(latencies), "failed": len(failed), "p50_s": p50, "p95_s": p95, "tokens_per_s": rate}


@command
def main(argv: Sequence[str]) -> int:
    """Measures the server under load beside `transformers serve`, and writes a record."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=main.__doc__)
    parser.add_argument("--out", required=True, type=local_path, metavar="FILE", help="the record")
    parser.add_argument("--clients", type=int, default=32, help="that ask at once (default: 32)")
    parser.add_argument("--seconds", type=float, default=120, help="of load on each side (default: 120)")
    flags = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run, export = Path(folder) / "run", Path(folder) / "export"
        run.mkdir()
        export.mkdir()
        texts = [record.text for record in embedded.read()]
        tokenizer = tokenizer_lib.train(texts, 8_192).with_chat_tokens([])
        make_run(run, dataclasses.replace(SIZES["mini"], vocab_size=tokenizer.vocab_size), tokenizer)
        write_model(export, run, "float32")
        for side in SIDES:
            with serving(side, Path(folder)) as (address, model):
                found[side] = load(address, model, flags.clients, flags.seconds)
                print(side, json.dumps(found[side]), flush=True)
    record = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "model": "mini, random",
        "new_tokens": NEW_TOKENS,
    }
    write_json(flags.out, record | {"clients": flags.clients, "seconds": flags.seconds, "sides": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
