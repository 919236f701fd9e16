"""hub/gguf.py: the file has the run's tensors and vocabulary, and llama.cpp computes with it what our model does."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from ghost_jax.core.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.hub.gguf import FILE, split_of
from ghost_jax.inference.engine import Engine
from ghost_jax.model.config import ModelConfig
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.tokenizer import END
from ghost_jax.training.loading import load_model
from tests.models import one_device
from tests.test_export import CHAT, make_run

V05 = ModelConfig(layers=2, width=64, heads=4, mlp_dim=96, vocab_size=CHAT.vocab_size, context=64)
SHARED = dataclasses.replace(
    V05, kv_heads=2, head_dim=32, attention_bias=False, tied=False, rope_factor=8.0, rope_context=32
)


@pytest.fixture(params=[V05, SHARED], ids=["qkv with bias", "shared heads, stretched, untied"])
def run(request, tmp_path) -> Path:
    make_run(tmp_path / "run", request.param, CHAT)
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_a_file_has_the_models_tensors_and_vocabulary(run, tmp_path, dtype):
    write_model(tmp_path, run, dtype, "gguf")
    reader = gguf.GGUFReader(tmp_path / FILE)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.tokens"][CHAT.id(END)] == END
    assert fields["tokenizer.ggml.eot_token_id"] == CHAT.id(END)
    types = fields["tokenizer.ggml.token_type"]
    assert {i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL} == set(CHAT.special_ids)
    assert fields["tokenizer.ggml.pre"] == "gpt-2"

    write_model(tmp_path, run, "float32")
    theirs = load_file(tmp_path / "model.safetensors")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert len(found) == len(theirs) + ("rope_freqs.weight" in found)
    embedding, q = theirs["model.embed_tokens.weight"], theirs["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(found["token_embd.weight"], embedding, atol=np.abs(embedding).max() / 100)
    # llama.cpp's neighbours are Hugging Face's halves.
    neighbours = found["blk.0.attn_q.weight"].reshape(V05.heads, -1, 2, V05.width)
    halves = q.reshape(V05.heads, 2, -1, V05.width)
    np.testing.assert_allclose(neighbours.swapaxes(1, 2), halves, atol=np.abs(q).max() / 100)


def test_a_split_without_a_name_there_and_a_v04_model_are_refused(tmp_path):
    digits, last = {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}
    assert split_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, last]}}) == "smollm"
    for first in ({"type": "Punctuation"}, digits | {"individual_digits": False}):
        with pytest.raises(UserError, match="--format=hf"):
            split_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, last]}})
    make_run(tmp_path / "run", dataclasses.replace(V05, generation="v04"), CHAT)
    with pytest.raises(UserError, match=r"v0\.4"):
        write_model(tmp_path, tmp_path / "run", "float32", "gguf")


# ---- llama.cpp ----

ASK = """
import json, sys
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
asked = json.load(sys.stdin)
model = Llama(asked["file"], logits_all=True, n_ctx=64, n_batch=64, verbose=False, type_k=0, type_v=0)
ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
model.eval(asked["prompt"])
logits = np.array(model.scores[: len(asked["prompt"])]).tolist()
template = model.metadata["tokenizer.chat_template"]
chat = Jinja2ChatFormatter(template, "", "")(messages=asked["messages"]).prompt
answer = model.create_chat_completion(messages=asked["messages"], max_tokens=8, temperature=0)
print(json.dumps({"ids": ids, "logits": logits, "chat": chat, "answer": answer["choices"][0]["message"]["content"]}))
"""


@pytest.mark.slow
def test_llama_cpp_computes_the_same(run, tmp_path):
    """GHOST_LLAMA_PYTHON names a Python with llama-cpp-python, which is compiled from source."""
    python = os.environ.get("GHOST_LLAMA_PYTHON")
    if not python:
        pytest.skip("GHOST_LLAMA_PYTHON names no Python with llama-cpp-python")
    write_model(tmp_path, run, "float32", "gguf")
    rng = Random(0)
    alphabet = [chr(code) for code in (*range(32, 127), *range(0xC0, 0x180), 0x1F642, 0x65E5, 10, 9)]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1000)]
    texts.append("CVE-2021-44228  in log4j\n\n\tdef f(x): return 1234567 # don't")
    messages = [{"role": "user", "content": "Who sent it?"}]
    prompt = render_prompt(CHAT, [Message(**message) for message in messages])
    asked = {"file": str(tmp_path / FILE), "texts": texts, "prompt": prompt.tolist(), "messages": messages}
    done = subprocess.run([python, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["ids"] == [CHAT.encode(text) for text in texts]
    assert found["chat"] == CHAT.decode(prompt)
    model, params, _ = load_model(run, one_device())
    engine = Engine(model, params, one_device(), batch_size=1, new_tokens=8, stop_ids=CHAT.special_ids)
    logits = np.array(found["logits"])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.sort(log_probs)[:, ::-1][:, :5], engine.score(prompt).top_log_probs, atol=1e-2)
    complete = CHAT.decode(list(engine.stream(prompt))).partition("\ufffd")[0]  # it drops bytes that are not UTF-8
    assert found["answer"].startswith(complete)
