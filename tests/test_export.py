"""export.py and hub: transformers and llama.cpp compute from the exported files what we compute from the run."""

import dataclasses
import json
import shutil
from pathlib import Path
from random import Random

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import ghost_jax
from ghost_jax.core.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.hub import gguf as gguf_lib
from ghost_jax.hub.weights import FILE
from ghost_jax.inference.generate import Generator
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_record
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.tokenizer import END, EOS, Tokenizer
from ghost_jax.training.checkpoint import Checkpoints, identity_of
from ghost_jax.training.loading import load_model
from ghost_jax.training.step import new_state
from tests.llama_cpp import needs_llama_cpp, serving
from tests.models import build, one_device

CORPUS = ("A buffer overflow lets an attacker run code.", "hello, phishing is T1566 in ATT&CK.", "Äpfel 日本語 🙂")
CHAT = tokenizer_lib.train(CORPUS * 5, 400).with_chat_tokens(["hello", "goodbye"])
V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=CHAT.vocab_size, context=64)
WIDE = dataclasses.replace(V05, kv_heads=2, head_dim=12, tied=False, rope_base=50_000.0, norm_eps=1e-5)
STRETCHED = {"rope_factor": 8.0, "rope_context": 16, "rope_low": 0.5, "rope_high": 2.0}
MODELS = {
    "v05": V05,
    "v05 without attention bias, scanned": dataclasses.replace(V05, attention_bias=False, scan=True),
    "v05 with shared keys, wide heads and its own head": WIDE,
    "v05 with stretched positions": dataclasses.replace(V05, rope_base=100.0, **STRETCHED),
    "v04": dataclasses.replace(V05, generation="v04"),
}
PROMPT = "  hello,\tCVE-2021-44228 in 日本語 🙂\n\n"
USER = Message("user", " Which\nis it? {{ x }} <b>'\"</b>\n")
MESSAGES = [USER, Message("assistant", "B. 日本語 🙂 "), Message("user", "")]


def make_run(folder: Path, model: ModelConfig, tokenizer: Tokenizer) -> dict:
    """Writes a finished run directory of a model as training leaves it; returns its unstacked parameters."""
    with Checkpoints(folder, keep=1) as checkpoints:
        state = new_state(jax.tree.map(jnp.asarray, build(model)), optax.identity(), jax.random.key(0))
        checkpoints.save(state, identity_of(model, tokenizer.sha256, ""))
    tokenizer.save(folder / "tokenizer.json")
    run_record.write_finished(folder, steps=0)
    return build(dataclasses.replace(model, scan=False))


def export(folder: Path, model: ModelConfig) -> tuple[dict, Path]:
    """Returns the parameters of a new run in `folder` and the folder that it is exported to."""
    params, out = make_run(folder / "run", model, CHAT), folder / "out"
    out.mkdir()
    write_model(out, folder / "run", "float32")
    return params, out


@pytest.fixture(scope="module")
def hugging_face():
    """transformers and torch, where they are installed."""
    pytest.importorskip("torch", reason="torch is not installed: what transformers computes is not compared")
    return pytest.importorskip("transformers", reason="transformers is not installed: what it computes is not compared")


def ours(model: ModelConfig, params: dict, ids: list[int]) -> np.ndarray:
    model = dataclasses.replace(model, scan=False)
    logits = jax.jit(lambda p, t: Transformer(model).apply({"params": p}, t))(params, np.array([ids]))
    return np.asarray(logits)[0, :, : model.vocab_size]


def theirs(hugging_face, folder: Path, ids: list[int], **options) -> np.ndarray:
    import torch

    model = hugging_face.AutoModelForCausalLM.from_pretrained(folder, **options)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.float().numpy()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits_and_greedy_text(hugging_face, tmp_path, name):
    import torch

    params, out = export(tmp_path, MODELS[name])
    for ids in (CHAT.encode(PROMPT), CHAT.encode(CORPUS[0])):
        expected = ours(MODELS[name], params, ids)
        assert np.abs(expected).max() > 2  # so that a tolerance of 1e-4 shows a wrong weight
        np.testing.assert_allclose(theirs(hugging_face, out, ids), expected, rtol=0, atol=1e-4)

    model = hugging_face.AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == ("GPT2LMHeadModel" if name == "v04" else "LlamaForCausalLM")
    prompt, stop_ids = render_prompt(CHAT, MESSAGES[:1]), [CHAT.id(END), CHAT.id(EOS)]
    config = dataclasses.replace(MODELS[name], scan=False)
    text = Generator(config, params, make_mesh(), batch_size=1, new_tokens=24, stop_ids=stop_ids)([prompt])[0].tolist()
    written = model.generate(torch.tensor([prompt.tolist()]), max_new_tokens=24)[0].tolist()[len(prompt) :]
    assert [i for i in written if i not in stop_ids] == text
    assert len(set(text)) > 3
    assert model.generation_config.eos_token_id == stop_ids


@pytest.mark.slow
def test_transformers_reads_the_vocabulary_as_we_do_and_renders_chats_byte_by_byte(hugging_face, tmp_path):
    tokenizer = hugging_face.AutoTokenizer.from_pretrained(export(tmp_path, V05)[1])
    for text in (PROMPT, *CORPUS, "hello goodbye hellos", " ", ""):
        assert tokenizer(text)["input_ids"] == CHAT.encode(text)
        assert tokenizer.decode(CHAT.encode(text)) == text
    messages = [dataclasses.asdict(message) for message in MESSAGES]
    for count in range(1, len(messages) + 1):
        ids, _ = render(CHAT, MESSAGES[:count])
        assert tokenizer.apply_chat_template(messages[:count], tokenize=False) == CHAT.decode(ids)
        prompt = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=True)
        assert prompt == CHAT.decode(render_prompt(CHAT, MESSAGES[:count]))
    assert tokenizer.apply_chat_template(messages)["input_ids"] == ids.tolist()
    system = Message("system", "Be brief.")
    told = [{"role": "system", "content": system.content}, *messages]
    expected = CHAT.decode(render_prompt(CHAT, [system, *MESSAGES]))
    assert tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True) == expected
    for wrong in (told[:1], [*messages, told[0]]):
        with pytest.raises(Exception, match="The roles are user and assistant"):
            tokenizer.apply_chat_template(wrong, tokenize=False)


GPT2_LAYER = {
    "ln_1.weight": (32,), "ln_1.bias": (32,), "ln_2.weight": (32,), "ln_2.bias": (32,),
    "attn.c_attn.weight": (32, 96), "attn.c_attn.bias": (96,), "mlp.c_fc.weight": (32, 48), "mlp.c_fc.bias": (48,),
    "attn.c_proj.weight": (32, 32), "attn.c_proj.bias": (32,), "mlp.c_proj.weight": (48, 32), "mlp.c_proj.bias": (32,),
}  # fmt: skip


def test_names_shapes_and_config_of_a_gpt2(tmp_path):
    _, out = export(tmp_path, MODELS["v04"])
    top = {"transformer.wte.weight": (CHAT.vocab_size, 32), "transformer.wpe.weight": (64, 32)}
    top |= {"transformer.ln_f.weight": (32,), "transformer.ln_f.bias": (32,)}
    layers = {f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in GPT2_LAYER.items()}
    assert {name: values.shape for name, values in load_file(out / FILE).items()} == top | layers
    config = json.loads((out / "config.json").read_text())
    assert config["ghost_jax"] == {"version": ghost_jax.__version__, "run": "run", "step": 0, "format": "hf"}
    assert (config["activation_function"], config["layer_norm_epsilon"], config["n_inner"]) == ("gelu_new", 1e-6, 48)


def test_a_chat_run_and_its_base_are_exported_with_a_card_and_nothing_is_replaced(ghost, tiny_run, tmp_path):
    chat, base = tmp_path / "chat", tmp_path / "base"
    flags = (f"--workdir={tiny_run.workdir}", f"--out={chat}")
    ghost.here("ghost_jax.export", *flags)
    command = ("ghost_jax.export", f"--workdir={tiny_run.base}", f"--out={base}", "--dtype=bfloat16")
    ghost.here(*command)
    expected = {"README.md", "config.json", "generation_config.json", FILE, "tokenizer.json", "tokenizer_config.json"}
    for out in (chat, base):
        assert {path.name for path in out.iterdir()} == expected
        assert ("chat_template" in json.loads((out / "tokenizer_config.json").read_text())) == (out == chat)
    card = (chat / "README.md").read_text()
    score = json.loads((tiny_run.workdir / "evals" / "ctibench.json").read_text())
    assert f"| {100 * score['single_order']:.1f} | {100 * score['headline']['accuracy']:.1f} |" in card

    before = (base / "config.json").read_text()
    assert str(base) in ghost.refused_here(*command[:-1])
    assert (base / "config.json").read_text() == before


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(ghost, tiny_run, tmp_path):
    unfinished = shutil.copytree(tiny_run.workdir, tmp_path / "unfinished")
    (unfinished / "status.json").unlink()
    for workdir in (unfinished, tmp_path / "nowhere"):
        command = ("ghost_jax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
        assert str(workdir) in ghost.refused_here(*command)
    assert "q8_0" in ghost.refused_here(*command, "--dtype=q8_0", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


# Rows of whole blocks of q8_0; as many heads of keys as of queries, which is one fused projection.
BLOCKS = dataclasses.replace(V05, width=64, mlp_dim=96, kv_heads=V05.heads)
SHARED = dataclasses.replace(BLOCKS, kv_heads=2, head_dim=32, attention_bias=False, tied=False, **STRETCHED)


@pytest.fixture(params=[BLOCKS, SHARED], ids=["qkv with bias", "shared heads, stretched, untied"])
def run(request, tmp_path) -> Path:
    make_run(tmp_path / "run", request.param, CHAT)
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_a_file_has_the_models_tensors_and_vocabulary(run, tmp_path, dtype):
    write_model(tmp_path, run, dtype, "gguf")
    reader = gguf.GGUFReader(tmp_path / gguf_lib.FILE)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.tokens"][CHAT.id(END)] == END
    assert fields["tokenizer.ggml.eot_token_id"] == CHAT.id(END)
    types = fields["tokenizer.ggml.token_type"]
    assert {i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL} == set(CHAT.special_ids)
    assert fields["tokenizer.ggml.pre"] == "gpt-2"

    write_model(tmp_path, run, "float32")
    theirs = load_file(tmp_path / FILE)
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert len(found) == len(theirs) + ("rope_freqs.weight" in found)
    embedding, q = theirs["model.embed_tokens.weight"], theirs["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(found["token_embd.weight"], embedding, atol=np.abs(embedding).max() / 100)
    # llama.cpp's neighbours are Hugging Face's halves.
    neighbours = found["blk.0.attn_q.weight"].reshape(4, -1, 2, 64)
    halves = q.reshape(4, 2, -1, 64)
    np.testing.assert_allclose(neighbours.swapaxes(1, 2), halves, atol=np.abs(q).max() / 100)


def test_a_split_without_a_name_there_and_a_v04_model_are_refused(tmp_path):
    digits, last = {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}
    (llama,) = next(kinds for kinds, name in gguf_lib.SPLITS.items() if name == "llama-bpe")
    split, bare = {"type": "Split", "pattern": {"Regex": llama}, "behavior": "Isolated"}, last | {"use_regex": False}

    def named(*parts: dict) -> str:
        return gguf_lib.split_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}})

    assert (named(last), named(digits, last), named(split, bare)) == ("gpt-2", "smollm", "llama-bpe")
    for parts in (
        ({"type": "Punctuation"}, last),
        (digits | {"individual_digits": False}, last),
        (digits, bare),
        (bare,),
        (digits, split, bare),
        (split, last),
        (split | {"behavior": "MergedWithNext"}, bare),
    ):
        with pytest.raises(UserError, match="--format=hf"):
            named(*parts)
    make_run(tmp_path / "run", MODELS["v04"], CHAT)
    with pytest.raises(UserError, match=r"v0\.4"):
        write_model(tmp_path, tmp_path / "run", "float32", "gguf")


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_computes_the_same(run, tmp_path):
    write_model(tmp_path, run, "float32", "gguf")
    rng = Random(0)
    alphabet = [chr(code) for code in (*range(32, 127), *range(0xC0, 0x180), 0x1F642, 0x65E5, 10, 9)]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1000)]
    texts.append("CVE-2021-44228  in log4j\n\n\tdef f(x): return 1234567 # don't")
    messages = [{"role": "user", "content": "Who sent it?"}]
    prompt = render_prompt(CHAT, [Message(**message) for message in messages]).tolist()
    model, params, _ = load_model(run, one_device())
    sampled = [[CHAT.encode("a")[0], 1e9]]  # a token that shows: of part of a character llama.cpp says nothing
    expected = np.asarray(jax.nn.log_softmax(ours(model, params, prompt)))
    with serving(tmp_path / gguf_lib.FILE, model.context) as ask:
        assert [ask("/tokenize", content=text)["tokens"] for text in texts] == [CHAT.encode(text) for text in texts]
        assert ask("/apply-template", messages=messages)["prompt"] == CHAT.decode(prompt)
        for length, row in enumerate(expected, 1):
            asked = {"prompt": prompt[:length], "n_predict": 1, "n_probs": CHAT.vocab_size, "logit_bias": sampled}
            (found,) = ask("/completion", **asked, cache_prompt=False)["completion_probabilities"]
            by_id = {each["id"]: each["logprob"] for each in found["top_logprobs"]}
            np.testing.assert_allclose([by_id[i] for i in range(CHAT.vocab_size)], row, atol=1e-2)
        answer = ask("/v1/chat/completions", messages=messages, max_tokens=8)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
