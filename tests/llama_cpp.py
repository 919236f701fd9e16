"""A server of llama.cpp, as xllamacpp's wheel has it compiled (requirements-all.txt)."""

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

SERVE = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")


@contextlib.contextmanager
def serving(file: Path, context: int) -> Iterator[Callable[..., dict]]:
    """Yields a function from a path of the server of a GGUF file, and the fields of a request, to its answer."""
    command = [sys.executable, "-c", SERVE, str(file), str(context)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()

    def ask(path: str, **fields: object) -> dict:
        answer = session.post(f"{address}{path}", json=fields, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    with requests.Session() as session:
        try:
            yield ask
        finally:
            process.kill()
            process.communicate()
