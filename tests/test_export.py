"""ghost_jax/export.py and ghost_jax/hf: transformers computes from the exported files what we compute from the run."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ghost_jax
from ghost_jax.core.errors import UserError
from ghost_jax.export import check_out, write_model
from ghost_jax.hub.weights import FILE, INDEX, Weights
from ghost_jax.inference.generate import Generator
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_record
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.tokenizer import END, EOS, Tokenizer
from ghost_jax.training.checkpoint import Checkpoints, identity_of
from ghost_jax.training.step import new_state
from tests.conftest import ROOT
from tests.test_compare import report, write_items

CORPUS = ("A buffer overflow lets an attacker run code.", "hello, phishing is T1566 in ATT&CK.", "Äpfel 日本語 🙂")
BASE = tokenizer_lib.train(CORPUS * 5, 400)
CHAT = BASE.with_chat_tokens(["hello", "goodbye"])
V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=CHAT.vocab_size, context=64)
MODELS = {
    "v05": V05,
    "v05 without attention bias, scanned": dataclasses.replace(V05, attention_bias=False, scan=True),
    "v05 with shared keys, wide heads and a head of its own": dataclasses.replace(
        V05, kv_heads=2, head_dim=12, tied=False, rope_base=50_000.0, norm_eps=1e-5
    ),
    "v05 with stretched positions": dataclasses.replace(
        V05, rope_base=100.0, rope_factor=8.0, rope_context=16, rope_low=0.5, rope_high=2.0
    ),
    "v04": dataclasses.replace(V05, generation="v04"),
}
every_model = pytest.mark.parametrize("name", MODELS)
PROMPTS = (
    "Question: What does a buffer overflow let an attacker do?\nA) run code\nB) sleep\nAnswer:",
    "  hello,\tCVE-2021-44228 in 日本語 🙂\n\n",
)
MESSAGES = [
    Message("user", " Which\nis it? {{ x }} <b>'\"</b>\n"),
    Message("assistant", "B. 日本語 🙂 "),
    Message("user", ""),
]

pytestmark = pytest.mark.usefixtures("compile_quickly")


def build(model: ModelConfig) -> dict:
    """Weights so large that a wrong one shows, and random where training starts from zeros or ones."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return np.float32(path[-1].key == "scale") + 0.2 * rng.standard_normal(leaf.shape, np.float32)

    params = jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(lambda: transformer.init(dataclasses.replace(model, scan=False), jax.random.key(0)))
    )
    for table in transformer.tables_of(model):
        params[table][model.vocab_size :] = 0.0
    return params


def make_run(folder: Path, model: ModelConfig, tokenizer: Tokenizer) -> dict:
    """Writes a finished run directory of a model as training leaves it; returns its unstacked parameters."""
    params = build(model)
    kept = transformer.stack_blocks(params) if model.scan else jax.tree.map(jnp.asarray, params)
    with Checkpoints(folder, keep=1) as checkpoints:
        state = new_state(kept, optax.identity(), jax.random.key(0))
        checkpoints.save(state, identity_of(model, tokenizer.sha256, ""), {})
    tokenizer.save(folder / "tokenizer.json")
    run_record.write_finished(folder, steps=0)
    return params


def add_records(folder: Path, name: str = "chat_v3-seed0") -> None:
    """Writes beside a model the records of a real run, as training and scoring leave them."""
    shutil.copytree(ROOT / "evals" / "records" / name, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function: the parameters of one of `MODELS` and the folder that it is exported to."""
    made = {}

    def get(name: str) -> tuple[dict, Path]:
        if name not in made:
            run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out")
            made[name] = make_run(run, MODELS[name], CHAT), out
            write_model(out, run, "float32", 10**9)
        return made[name]

    return get


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


# ---- What transformers makes of it ----


@every_model
@pytest.mark.parametrize("prompt", PROMPTS, ids=["a question", "any bytes"])
def test_transformers_computes_the_same_logits(hugging_face, exported, name, prompt):
    params, out = exported(name)
    ids = CHAT.encode(prompt)[:60]
    expected = ours(MODELS[name], params, ids)
    assert np.abs(expected).max() > 2  # else a tolerance of 1e-4 says little
    np.testing.assert_allclose(theirs(hugging_face, out, ids), expected, rtol=0, atol=1e-4)


@every_model
def test_transformers_writes_the_same_greedy_text(hugging_face, exported, name):
    import torch

    params, out = exported(name)
    model = hugging_face.AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == ("GPT2LMHeadModel" if name == "v04" else "LlamaForCausalLM")
    prompt = render_prompt(CHAT, MESSAGES[:1])
    config = dataclasses.replace(MODELS[name], scan=False)
    stop_ids = [CHAT.id(END), CHAT.id(EOS)]
    generate = Generator(config, params, make_mesh(), batch_size=1, new_tokens=24, stop_ids=stop_ids)
    text = generate([prompt])[0].tolist()
    written = model.generate(torch.tensor([prompt.tolist()]), max_new_tokens=24)[0].tolist()[len(prompt) :]
    assert [i for i in written if i not in stop_ids] == text
    assert len(set(text)) > 3
    assert model.generation_config.eos_token_id == stop_ids


def test_transformers_reads_the_vocabulary_as_we_do_and_renders_chats_byte_by_byte(hugging_face, exported):
    tokenizer = hugging_face.AutoTokenizer.from_pretrained(exported("v05")[1])
    for text in (*PROMPTS, *CORPUS, "hello goodbye hellos", " ", ""):
        assert tokenizer(text)["input_ids"] == CHAT.encode(text)
        assert tokenizer.decode(CHAT.encode(text)) == text
    messages = [dataclasses.asdict(message) for message in MESSAGES]
    for count in range(1, len(messages) + 1):
        ids, _ = render(CHAT, MESSAGES[:count])
        assert tokenizer.apply_chat_template(messages[:count], tokenize=False) == CHAT.decode(ids)
        prompt = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=True)
        assert prompt == CHAT.decode(render_prompt(CHAT, MESSAGES[:count]))
    ids, _ = render(CHAT, MESSAGES)
    assert tokenizer.apply_chat_template(messages)["input_ids"] == ids.tolist()
    with pytest.raises(Exception, match="The roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


def test_transformers_reads_bfloat16_as_what_our_weights_round_to(hugging_face, tmp_path):
    import torch

    params = make_run(tmp_path / "run", V05, CHAT)
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", tmp_path / "run", "bfloat16", 10**9)
    model = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), params)
    ids = CHAT.encode(PROMPTS[0])[:60]
    expected = ours(V05, rounded, ids)
    np.testing.assert_allclose(theirs(hugging_face, tmp_path / "out", ids, dtype=torch.float32), expected, atol=1e-4)
    error = np.abs(theirs(hugging_face, tmp_path / "out", ids) - ours(V05, params, ids))
    assert error.max() < 0.1 * np.abs(expected).max()  # bfloat16 has 8 bits: 0.4% an operation


def test_transformers_loads_several_files(hugging_face, exported, tmp_path):
    make_run(tmp_path / "run", V05, CHAT)
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", tmp_path / "run", "float32", 20_000)
    ids = CHAT.encode(PROMPTS[0])[:60]
    whole = theirs(hugging_face, exported("v05")[1], ids)
    np.testing.assert_array_equal(theirs(hugging_face, tmp_path / "out", ids), whole)


# ---- The files ----


def test_the_names_and_shapes_of_a_llama_are_golden(exported):
    _, out = exported("v05 with shared keys, wide heads and a head of its own")
    layer = {
        "input_layernorm.weight": [32],
        "mlp.down_proj.weight": [32, 48],
        "mlp.gate_proj.weight": [48, 32],
        "mlp.up_proj.weight": [48, 32],
        "post_attention_layernorm.weight": [32],
        **{f"self_attn.{one}_proj.{kind}": shape for one, rows in (("q", 48), ("k", 24), ("v", 24))
           for kind, shape in (("weight", [rows, 32]), ("bias", [rows]))},
        "self_attn.o_proj.weight": [32, 48],
        "self_attn.o_proj.bias": [32],
    }  # fmt: skip
    assert shapes_of(out) == {
        "model.embed_tokens.weight": [CHAT.vocab_size, 32],
        **{f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        "model.norm.weight": [32],
        "lm_head.weight": [CHAT.vocab_size, 32],
    }
    assert not [name for name in shapes_of(exported("v05")[1]) if name.startswith("lm_head")]  # tied


def test_the_names_and_shapes_of_a_gpt2_are_golden(exported):
    linear = {"attn.c_attn": [32, 96], "attn.c_proj": [32, 32], "mlp.c_fc": [32, 48], "mlp.c_proj": [48, 32]}
    layer = {f"{name}.weight": shape for name, shape in linear.items()}
    layer |= {f"{name}.bias": shape[1:] for name, shape in linear.items()}
    layer |= {f"{norm}.{kind}": [32] for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    assert shapes_of(exported("v04")[1]) == {
        "transformer.wte.weight": [CHAT.vocab_size, 32],
        "transformer.wpe.weight": [64, 32],
        **{f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        "transformer.ln_f.weight": [32],
        "transformer.ln_f.bias": [32],
    }


def shapes_of(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(folder / FILE, "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict


def test_config_json_says_which_run_the_model_is_and_what_ends_its_text(exported):
    config = json.loads((exported("v05")[1] / "config.json").read_text())
    assert config["ghost_jax"].keys() == {"version", "run", "step"}
    assert config["eos_token_id"] == [CHAT.id(END), CHAT.id(EOS)]
    assert (config["vocab_size"], config["rope_theta"], config["rms_norm_eps"]) == (CHAT.vocab_size, 10_000.0, 1e-6)
    gpt2 = json.loads((exported("v04")[1] / "config.json").read_text())
    assert (gpt2["activation_function"], gpt2["layer_norm_epsilon"], gpt2["n_inner"]) == ("gelu_new", 1e-6, 48)


def test_several_files_hold_together_what_one_holds(exported, tmp_path):
    make_run(tmp_path / "run", V05, CHAT)
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", tmp_path / "run", "float32", 20_000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 2
    assert files == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files
    whole, parted = Weights(exported("v05")[1]), Weights(tmp_path / "out")
    shapes = shapes_of(exported("v05")[1])
    assert index["weight_map"].keys() == shapes.keys()
    assert index["metadata"]["total_size"] == 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    for name, shape in shapes.items():
        np.testing.assert_array_equal(whole(name, tuple(shape)), parted(name, tuple(shape)))
    largest = 4 * max(int(np.prod(shape)) for shape in shapes.values())
    assert max((tmp_path / "out" / file).stat().st_size for file in files) < max(20_000, largest) + 5_000  # the header


# ---- The command ----


def test_a_chat_run_and_its_base_are_exported_by_the_command(ghost, tiny_run, tmp_path):
    chat = ("ghost_jax.export", f"--workdir={tiny_run.workdir}", f"--out={tmp_path / 'chat'}")
    command = ("ghost_jax.export", f"--workdir={tiny_run.base}", f"--out={tmp_path / 'base'}", "--dtype=bfloat16")
    said = ghost.together({"chat": lambda: ghost(*chat).stdout, "base": lambda: ghost(*command).stdout})
    assert "LlamaForCausalLM" in said["chat"]
    assert "with a chat template" in said["chat"]
    assert "without a chat template" in said["base"]
    expected = {"README.md", "config.json", "generation_config.json", FILE, "tokenizer.json", "tokenizer_config.json"}
    for out in (tmp_path / "chat", tmp_path / "base"):
        assert {path.name for path in out.iterdir()} == expected
        assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text()) or out.name == "base"
    assert "holds an export already. Give --force" in ghost.refused(*command)
    assert "experimental: It was not put forward as canonical." in said["chat"]
    score = json.loads((tiny_run.workdir / "evals" / "ctibench.json").read_text())
    card = (tmp_path / "chat" / "README.md").read_text()
    assert f"| this model | {100 * score['single_order']:.1f} | {100 * score['headline']['accuracy']:.1f} |" in card
    assert f"exported with ghost_jax {ghost_jax.__version__}" in card
    assert "nothing is known of what it knows" in (tmp_path / "base" / "README.md").read_text()
    before = (tmp_path / "base" / "config.json").read_text()
    ghost(*command, "--force", "--dtype=float32")
    assert (tmp_path / "base" / "config.json").read_text() == before.replace("bfloat16", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "chat"]


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(ghost, tiny_run, tmp_path):
    def refused(workdir: Path, out: Path, *flags: str, code: int = 1) -> str:
        return ghost.refused("ghost_jax.export", f"--workdir={workdir}", f"--out={out}", *flags, code=code)

    out = tmp_path / "out"
    said = ghost.together(
        {
            "holds no records of a run": lambda: refused(tmp_path / "nowhere", out),
            "500MB, 5GB": lambda: refused(tiny_run.workdir, out, "--shard_size=5", code=2),
            "add --push_to=OWNER/NAME": lambda: refused(tiny_run.workdir, out, "--dry_run", code=2),
            # Not even --force takes a folder away that is no export, the run itself among them.
            "chat holds something that is no export of ours": lambda: refused(
                tiny_run.workdir, tiny_run.workdir, "--force"
            ),
            "no export of ours": lambda: refused(tiny_run.workdir, tiny_run.workdir.parent, "--force"),
        }
    )
    for expected, paragraph in said.items():
        assert expected in paragraph
    assert (tiny_run.workdir / "status.json").is_file()
    assert not list(tmp_path.iterdir())


def test_what_lies_beside_an_export_is_not_taken_away_by_another(tmp_path):
    make_run(tmp_path / "run", V05, CHAT)
    out = tmp_path / "out"
    out.mkdir()
    write_model(out, tmp_path / "run", "float32", 10**9)
    check_out(out, force=True)
    (out / ".git").mkdir()
    (out / "NOTES.txt").write_text("mine")
    with pytest.raises(UserError, match=r"beside it \.git, NOTES\.txt"):
        check_out(out, force=True)


def test_an_unfinished_run_is_refused(tmp_path):
    make_run(tmp_path / "run", V05, CHAT)
    (tmp_path / "run" / "status.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        write_model(tmp_path / "out", tmp_path / "run", "float32", 10**9)


def test_what_was_put_forward_and_not_accepted_is_said_on_the_screen_and_in_the_card(ghost, tmp_path):
    run, present, out = (tmp_path / name for name in ("run", "present", "out"))
    items = write_items(tmp_path / "own.jsonl")
    make_run(run, V05, CHAT)
    for folder, knows, steps in ((run, 122, 30), (present, 120, 31)):
        add_records(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"steps": steps}))
        (folder / "evals" / "ctibench.json").write_text(json.dumps(report(items, range(knows))))
        shutil.copy(items.path, folder / "heldout.jsonl")
    command = ("ghost_jax.export", f"--workdir={run}", f"--out={out}", f"--present={present}", "--channel=canonical")
    said = ghost(*command).stdout
    reason = next(line for line in said.splitlines() if line.startswith("experimental: ")).partition(": ")[2]
    assert "not accepted: it is not shown to be above the present canonical run." in reason
    assert "run is not told apart from present: +0.8 points" in reason
    card = (out / "README.md").read_text()
    assert f"**Experimental.** {reason}" in card
    assert card.index("\n| present | Q&A") < card.index("\n| run | Q&A")


def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(ghost, tmp_path):
    large = dataclasses.replace(V05, width=512, mlp_dim=2048, layers=6, heads=8)
    make_run(tmp_path / "run", large, CHAT)
    add_records(tmp_path / "run")
    out, aside = tmp_path / "out", tmp_path / "out.partial"
    command = ("ghost_jax.export", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--shard_size=1MB")
    process = ghost.start(*command)
    deadline = time.monotonic() + 60
    while not (aside / "shard-3").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert ghost.finish(process, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    assert not (aside / "config.json").exists()
    ghost(*command)
    assert not aside.exists()
    assert {path.name for path in out.iterdir()} >= {"config.json", INDEX}


def test_a_full_disk_ends_an_export_with_a_sentence(ghost, tiny_run, small_disk):
    disk = small_disk(1)
    with (disk / "filler").open("wb") as file:
        file.write(os.urandom(900_000))
    said = ghost.refused("ghost_jax.export", f"--workdir={tiny_run.workdir}", f"--out={disk / 'out'}")
    assert "The disk is full" in said
    assert [path.name for path in disk.iterdir()] == ["filler"]
