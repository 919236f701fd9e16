"""ghost_jax/import_model.py and ghost_jax/hf: a Llama from elsewhere computes here what it computes there."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from ghost_jax.core.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.hub.llama import model_of
from ghost_jax.hub.vocabulary import adopt
from ghost_jax.hub.weights import INDEX
from ghost_jax.import_model import read_model, write_run
from ghost_jax.inference.generate import Generator
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.text.tokenizer import BOS, EOS, ROLES, load
from ghost_jax.training.checkpoint import load_model
from tests.test_export import CHAT, MODELS, V05, hugging_face, make_run, ours, theirs

LLAMAS = {name: model for name, model in MODELS.items() if model.generation == "v05"} | {
    "shared keys": dataclasses.replace(V05, kv_heads=1),
    "shared keys, scanned": dataclasses.replace(V05, kv_heads=2, attention_bias=False, scan=True),
    "a head of its own": dataclasses.replace(V05, tied=False),
}
PROMPT = "hello world, 1234 attackers 日本語\n\n"
__all__ = ["hugging_face"]  # a fixture

pytestmark = pytest.mark.usefixtures("compile_quickly")


def exported(tmp_path: Path, model: ModelConfig) -> tuple[dict, Path]:
    """The parameters of a run, and the folder it is exported to, which stands for a checkpoint from elsewhere."""
    params, out = make_run(tmp_path / "run", model, CHAT), tmp_path / "out"
    out.mkdir()
    write_model(out, tmp_path / "run", "float32", 10**9)
    return params, out


def foreign_vocabulary(size: int = 320) -> tokenizers.Tokenizer:
    """A byte-level BPE as others make them: digits apart, one token that both begins and ends a text."""
    vocabulary = tokenizers.Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    vocabulary.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<|endoftext|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    vocabulary.train_from_iterator(["hello world, the attackers send phishing mails"] * 5, trainer)
    return vocabulary


def save_vocabulary(folder: Path, vocabulary: tokenizers.Tokenizer, **settings) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# ---- There and back ----


@pytest.mark.parametrize("name", LLAMAS)
def test_what_was_exported_comes_back_bit_for_bit(tmp_path, name):
    params, out = exported(tmp_path, LLAMAS[name])
    model, found, tokenizer, _ = read_model(out)
    assert model == dataclasses.replace(LLAMAS[name], scan=False)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert tokenizer.sha256 == CHAT.sha256


@pytest.mark.parametrize("name", ["shared keys", "a head of its own", "v05 with stretched positions"])
def test_an_imported_run_is_exported_as_it_came(tmp_path, name):
    _, out = exported(tmp_path, LLAMAS[name])
    run, again = tmp_path / "imported", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    write_run(run, "imported", out)
    write_model(again, run, "float32", 10**9)
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes(), file
    configs = [json.loads((folder / "config.json").read_text()) for folder in (out, again)]
    assert [config.pop("ghost_jax")["run"] for config in configs] == ["run", "imported"]
    assert configs[0] == configs[1]


# ---- Parity with transformers ----

SHAPES = {
    "as SmolLM2": {
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "tie_word_embeddings": True,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    },
    "untied": {"tie_word_embeddings": False, "rope_theta": 500_000.0},
    "attention bias": {"attention_bias": True, "tie_word_embeddings": True},
    "one head of keys, wide heads": {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True},
    "as Llama 3.2": {
        "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True, "rope_theta": 100.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_llama_computes_what_transformers_computes(hugging_face, tmp_path, shape):
    import torch

    save_vocabulary(tmp_path, foreign_vocabulary())
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"vocab_size": 330, "max_position_embeddings": 64, "initializer_range": 0.2}
    there = hugging_face.LlamaForCausalLM(hugging_face.LlamaConfig(**common | SHAPES[shape]))
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "bias" in name or "norm" in name:  # which start as zeros and ones
                parameter.add_(0.2 * torch.randn_like(parameter))
    there.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    model, params, tokenizer, files = read_model(tmp_path)
    assert (model.rope_factor, model.rope_base) == (
        SHAPES[shape].get("rope_scaling", {"factor": 1})["factor"],
        SHAPES[shape].get("rope_theta", 10_000.0),
    )
    assert len(files) > 1
    assert model.vocab_size == tokenizer.vocab_size == 330

    ids = tokenizer.encode(PROMPT)
    expected = theirs(hugging_face, tmp_path, ids, dtype=torch.float32)
    assert np.abs(expected).max() > 2  # else a tolerance of 1e-4 says little
    np.testing.assert_allclose(ours(model, params, ids), expected, rtol=0, atol=1e-4)

    there = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
    text = there.generate(torch.tensor([ids]), **settings)[0].tolist()[len(ids) :]
    generate = Generator(model, params, make_mesh(), batch_size=1, new_tokens=16, stop_ids=[0])
    assert generate([np.array(ids)])[0].tolist() == [i for i in text if i]


# ---- Vocabularies ----


def test_a_vocabulary_from_elsewhere_keeps_its_ids_and_answers_to_our_names(tmp_path):
    vocabulary = foreign_vocabulary()
    save_vocabulary(tmp_path, vocabulary)
    count = vocabulary.get_vocab_size()
    tokenizer = adopt(tmp_path, count + 7)
    assert tokenizer.vocab_size == count + 7  # rows without a token have one now
    assert tokenizer.id(BOS) == tokenizer.id(EOS) == vocabulary.token_to_id("<|endoftext|>")
    assert tokenizer.encode(PROMPT) == vocabulary.encode(PROMPT).ids
    assert tokenizer.decode(tokenizer.encode(PROMPT)) == PROMPT
    assert tokenizer.id(EOS) not in tokenizer.encode("<|endoftext|>")  # a text cannot end itself

    tokenizer.save(tmp_path / "run.json")
    chat = load(tmp_path / "run.json").with_chat_tokens(["hello"])
    assert chat.id(EOS) == tokenizer.id(EOS)
    assert [chat.id(role) for role in ROLES] == [count + 7, count + 8, count + 9]
    assert chat.encode(PROMPT) == tokenizer.encode(PROMPT)  # "hello" was a token already


# ---- Every field of a tokenizer.json ----

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "[^\\s\\p{L}]+"}, "behavior": "Isolated", "invert": False}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}


def sequence(*parts: dict, of: str = "pretokenizers") -> dict:
    return {"type": "Sequence", of: parts}


def added(content: str, number: int = 290, **flags) -> dict:
    return {"id": number, "content": content, **TOKEN, **flags}


def changed(folder: Path, change: dict, **settings) -> Path:
    """A folder with the foreign vocabulary, some of its fields replaced; those of the model one by one."""
    save_vocabulary(folder, foreign_vocabulary(290), **settings)
    path = folder / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    change = dict(change)
    vocabulary["model"] |= change.pop("model", {})
    vocabulary["added_tokens"] += change.pop("added_tokens", [])
    path.write_text(json.dumps(vocabulary | change))
    return folder


def vocab_with(**tokens: int) -> dict:
    return {"vocab": json.loads(foreign_vocabulary(290).to_str())["model"]["vocab"] | tokens}


REFUSED_VOCABULARIES = {
    'normalizer.type is "NFC"': {"normalizer": {"type": "NFC"}},
    'normalizer.normalizers[1].type is "Lowercase"': {
        "normalizer": sequence(sequence(of="normalizers"), {"type": "Lowercase"}, of="normalizers")
    },
    'pre_tokenizer.type is "Metaspace"': {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    },
    'pre_tokenizer.pretokenizers[0].type is "Whitespace"': {"pre_tokenizer": sequence({"type": "Whitespace"}, BYTES)},
    "pre_tokenizer has 0 parts": {"pre_tokenizer": None},
    "pre_tokenizer has 2 parts": {"pre_tokenizer": sequence(BYTES, BYTES)},
    "pre_tokenizer.add_prefix_space is true": {"pre_tokenizer": BYTES | {"add_prefix_space": True}},
    "pre_tokenizer.pretokenizers[0].pretokenizers[0].add_prefix_space is true": {
        "pre_tokenizer": sequence(sequence(BYTES | {"add_prefix_space": True}))
    },
    # Of what our probe has none of: only reading the field can tell
    'pre_tokenizer.pretokenizers[0].behavior is "Removed"': {
        "pre_tokenizer": sequence(SPLIT | {"pattern": {"String": "~~"}, "behavior": "Removed"}, BYTES)
    },
    "pre_tokenizer.of_a_later_version is 1": {"pre_tokenizer": BYTES | {"of_a_later_version": 1}},
    'decoder.type is "WordPiece"': {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    'model.type is "WordLevel"': {"model": {"type": "WordLevel"}},
    "model.dropout is 1e-06": {"model": {"dropout": 1e-6}},
    'model.continuing_subword_prefix is "##"': {"model": {"continuing_subword_prefix": "##"}},
    'model.end_of_word_suffix is "</w>"': {"model": {"end_of_word_suffix": "</w>"}},
    "model.of_a_later_version is true": {"model": {"of_a_later_version": True}},
    "model.vocab lacks '!'": {"model": {"vocab": {"a": 0}, "merges": []}},
    "model.vocab has '▁a'": {"model": vocab_with(**{"▁a": 290})},
    "Token `zq` out of vocabulary": {"model": {"merges": [["z", "q"]]}},
    "Token `zq` out of": {"model": {"merges": ["z q"]}},
    "lstrip of the added token '<tool>' is true": {"added_tokens": [added("<tool>", lstrip=True)]},
    "rstrip of the added token '<tool>' is true": {"added_tokens": [added("<tool>", rstrip=True)]},
    "the added token 'é'": {"added_tokens": [added("é")]},
    "'<tool>' the id 290, and it should be 291": {"added_tokens": [added("<tool>", 291)]},
    "leaves ids out": {"model": vocab_with(zq=291)},
}


@pytest.mark.parametrize("why", REFUSED_VOCABULARIES)
def test_a_vocabulary_that_is_none_of_ours_is_refused_with_the_field_and_its_value(tmp_path, why):
    with pytest.raises(UserError) as refusal:
        adopt(changed(tmp_path, REFUSED_VOCABULARIES[why]), 400)
    assert why in str(refusal.value)
    assert "tokenizer.json" in str(refusal.value)


def there(**flags) -> dict:
    return {"290": {"content": "<tool>", **TOKEN, **flags}}


@pytest.mark.parametrize(
    ("why", "change", "settings"),
    [
        ("add_prefix_space", {}, {"add_prefix_space": True}),
        ("'<tool>' as 290", {}, {"added_tokens_decoder": there()}),
        ("rstrip", {"added_tokens": [added("<tool>")]}, {"added_tokens_decoder": there(rstrip=True)}),
        ("is broken", {}, {"added_tokens_decoder": ["<tool>"]}),
        ("is broken", {}, {"added_tokens_decoder": {"first": {"content": "<tool>"}}}),
    ],
)
def test_what_transformers_would_change_of_a_vocabulary_is_refused(tmp_path, why, change, settings):
    with pytest.raises(UserError) as refusal:
        adopt(changed(tmp_path, change, **settings), 400)
    assert why in str(refusal.value)


TAKEN_VOCABULARIES = {
    "no normalizer": {"normalizer": sequence(of="normalizers")},
    "split as Llama 3": {"pre_tokenizer": sequence(SPLIT, BYTES | {"use_regex": False})},
    "split to the left": {"pre_tokenizer": sequence(SPLIT | {"behavior": "MergedWithPrevious", "invert": True}, BYTES)},
    "punctuation apart": {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"}, BYTES)},
    "no decoder": {"decoder": None},
    "neutral fields": {"model": {"dropout": 0.0, "end_of_word_suffix": "", "byte_fallback": True, "unk_token": "?"}},
    "nulls": {"model": {"continuing_subword_prefix": None, "of_a_later_version": None}},
    "whole words first": {"model": {"ignore_merges": True}},
    "merges as strings": {
        "model": {
            "merges": [" ".join(pair) for pair in json.loads(foreign_vocabulary(290).to_str())["model"]["merges"]]
        }
    },
    "cut and filled up": {"truncation": TRUNCATION, "padding": PADDING | {"pad_token": "<|endoftext|>"}},
    "a token in texts": {"added_tokens": [added("<tool>", single_word=True, normalized=True)]},
    "a special token that strips": {"added_tokens": [added("<tool>", special=True, lstrip=True)]},
}


@pytest.mark.parametrize("what", TAKEN_VOCABULARIES)
def test_a_vocabulary_that_is_taken_gives_every_text_back_and_always_the_same_ids(tmp_path, what):
    tokenizer = adopt(changed(tmp_path, TAKEN_VOCABULARIES[what]), 400)
    for text in (PROMPT, "a <tool> b  ~~ <tool>", "\t é <|endoftext|> ", "the attackers send phishing mails " * 4):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(tokenizer.encode(text) == ids for _ in range(20))


def test_what_ends_a_text_may_be_named_by_the_older_file_and_never_comes_from_a_text(tmp_path):
    folder = changed(tmp_path, {"added_tokens": [added("</s>")]}, eos_token=None, bos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = adopt(folder, 400)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 290
    assert tokenizer.eos_id not in tokenizer.encode("one</s>two")


def test_names_of_ours_in_a_vocabulary_from_elsewhere_mean_what_it_says(tmp_path):
    """Its own file says what begins and ends a text, also where tokens are there that we would call so."""
    tokens = [added(name, number, special=True) for number, name in enumerate((BOS, EOS, "<|reserved_0|>"), 290)]
    tokenizer = adopt(changed(tmp_path, {"added_tokens": tokens}), 330)
    assert tokenizer.vocab_size == 330
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.id(EOS) == 0


def test_a_vocabulary_that_is_absent_broken_too_large_or_without_an_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        adopt(tmp_path, 400)
    save_vocabulary(tmp_path, foreign_vocabulary())
    with pytest.raises(UserError, match="of another model"):
        adopt(tmp_path, 200)
    for no_token in (None, 3, {"content": 3}, "</s>"):
        save_vocabulary(tmp_path, foreign_vocabulary(), eos_token=no_token)
        with pytest.raises(UserError, match="does not say which token ends a text"):
            adopt(tmp_path, 400)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is broken"):
        adopt(tmp_path, 400)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        adopt(tmp_path, 400)


# ---- What is refused ----


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, changed: dict, without: str = "") -> None:
    path = folder / "model.safetensors"
    tensors = {name: values for name, values in load_file(path).items() if name != without}
    save_file(tensors | changed, path)


def one_bad(value: float) -> np.ndarray:
    return np.array([1.0] * 31 + [value], np.float32)


def write_index(folder: Path, tensors: dict[str, list[str]]) -> None:
    places = {name: file for file, names in tensors.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def shard(folder: Path, moved: dict[str, str] | None = None, *, without: str = "", twice: str = "") -> None:
    """Splits the weights over two files; then the index names other places, or the tensors lie in another way."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in {*held, *filter(None, [twice])}}, folder / file)
    places = {name: file for file, held in parts.items() for name in held if name != without} | (moved or {})
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


K = "model.layers.1.self_attn.k_proj.weight"
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
REFUSED = {
    "is a gpt2 model, and only the Llama": functools.partial(change_config, model_type="gpt2"),
    "rotary positions scaled by linear": functools.partial(change_config, rope_scaling=LINEAR),
    "rotary positions scaled by yarn": functools.partial(change_config, rope_parameters={"rope_type": "yarn"}),
    "lacks 'factor'": functools.partial(change_config, rope_scaling={"rope_type": "llama3"}),
    "the first must be below the second": functools.partial(change_config, rope_scaling=LLAMA3),
    "partial_rotary_factor 0.5": functools.partial(change_config, rope_parameters={"partial_rotary_factor": 0.5}),
    "partial_rotary_factor 0.25": functools.partial(change_config, partial_rotary_factor=0.25),
    "rope_scaling unlike": functools.partial(
        change_config, rope_scaling=LLAMA3, rope_parameters=LLAMA3 | {"factor": 2}
    ),
    "rope_scaling in config.json is no JSON object": functools.partial(change_config, rope_scaling=[8.0]),
    "0 as max_position_embeddings": functools.partial(change_config, max_position_embeddings=0),
    "-1 as num_hidden_layers": functools.partial(change_config, num_hidden_layers=-1),
    "32.5 as hidden_size": functools.partial(change_config, hidden_size=32.5),
    '"4" as num_attention_heads': functools.partial(change_config, num_attention_heads="4"),
    "0 as num_key_value_heads": functools.partial(change_config, num_key_value_heads=0),
    "true as intermediate_size": functools.partial(change_config, intermediate_size=True),
    "[] as vocab_size": functools.partial(change_config, vocab_size=[]),
    "2147483648 as max_position_embeddings": functools.partial(change_config, max_position_embeddings=2**31),
    "Infinity as rope_theta": functools.partial(change_config, rope_theta=float("inf")),
    '"1e-5" as rms_norm_eps': functools.partial(change_config, rms_norm_eps="1e-5"),
    '"false" as tie_word_embeddings': functools.partial(change_config, tie_word_embeddings="false"),
    "lacks 'vocab_size'": functools.partial(change_config, vocab_size=None),
    "config.json is no JSON object": lambda folder: (folder / "config.json").write_text("[]"),
    "index.json is broken": lambda folder: (folder / INDEX).write_text('{"weight_map": ["model.safetensors"]}'),
    "mlp_bias true": functools.partial(change_config, mlp_bias=True),
    'hidden_act "gelu"': functools.partial(change_config, hidden_act="gelu"),
    "quantization_config {}": functools.partial(change_config, quantization_config={}),
    "sliding_window 4096": functools.partial(change_config, sliding_window=4096),
    "attn_logit_softcapping 50.0": functools.partial(change_config, attn_logit_softcapping=50.0),
    "final_logit_softcapping 30.0": functools.partial(change_config, final_logit_softcapping=30.0),
    "rope_interleaved true": functools.partial(change_config, rope_interleaved=True),
    "residual_multiplier 0.22": functools.partial(change_config, residual_multiplier=0.22),
    'auto_map {"AutoModel"': functools.partial(change_config, auto_map={"AutoModel": "own.Model"}),
    'architectures ["LlamaForTokenClassification"]': functools.partial(
        change_config, architectures=["LlamaForTokenClassification"]
    ),
    "no model can have": functools.partial(change_config, num_key_value_heads=3),
    "config.json asks for [48, 32]": functools.partial(change_config, head_dim=12),
    f"lacks the tensor {K}": functools.partial(change_tensors, changed={}, without=K),
    "is I8 [32, 32]": functools.partial(change_tensors, changed={K: np.zeros((32, 32), np.int8)}),
    "is F64 [32, 32]": functools.partial(change_tensors, changed={K: np.zeros((32, 32), np.float64)}),
    f"{K} in": functools.partial(change_tensors, changed={K: np.full((32, 32), np.nan, np.float16)}),
    "model.norm.weight in": functools.partial(change_tensors, changed={"model.norm.weight": one_bad(np.inf)}),
    "model.embed_tokens.weight in": functools.partial(
        change_tensors, changed={"model.embed_tokens.weight": np.full((CHAT.vocab_size, 32), -np.inf, np.float32)}
    ),
    "lm_head.weight that is not the embedding": functools.partial(
        change_tensors, changed={"lm_head.weight": np.zeros((CHAT.vocab_size, 32), np.float32)}
    ),
    "lm_head.weight in": functools.partial(change_tensors, changed={"lm_head.weight": np.zeros((9, 32), np.float32)}),
    "holds two checkpoints": lambda folder: write_index(folder, {"model-1.safetensors": [K]}),
    "lacks model-9.safetensors": lambda folder: shard(folder, {K: "model-9.safetensors"}),
    f"model-1.safetensors lacks the tensor {K}": lambda folder: shard(folder, {K: "model-1.safetensors"}),
    f"model-2.safetensors holds the tensor {K}": lambda folder: shard(folder, without=K),
    f"model-1.safetensors holds the tensor {K}": lambda folder: shard(folder, twice=K),
    "has 1 tensors that no Llama": functools.partial(change_tensors, changed={"adapter": np.zeros(3, np.float32)}),
    "damaged or cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"),
    "Only safetensors are read": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "holds no checkpoint": lambda folder: (folder / "config.json").unlink(),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("checkpoint"), V05)[1]


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return shutil.copytree(checkpoint, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("why", REFUSED)
def test_a_checkpoint_that_cannot_be_computed_is_refused_with_the_reason(checkpoint, tmp_path, why):
    folder = copy_of(checkpoint, tmp_path / "broken")
    REFUSED[why](folder)
    with pytest.raises(UserError) as refusal:
        read_model(folder)
    assert why in str(refusal.value)


def test_a_tied_head_that_is_written_twice_and_buffers_that_are_computed_are_no_strangers(checkpoint, tmp_path):
    copy_of(checkpoint, tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    change_tensors(tmp_path, {"lm_head.weight": embedding} | buffer)
    assert read_model(tmp_path)[0] == V05


def test_weights_in_several_files_are_those_of_one(checkpoint, tmp_path):
    copy_of(checkpoint, tmp_path)
    shard(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, read_model(tmp_path)[1], read_model(checkpoint)[1])


OPTIONAL = ("quantization_config", "rope_scaling", "rope_parameters", "head_dim", "num_key_value_heads", "mlp_bias")
OPTIONAL += ("attention_bias", "sliding_window", "hidden_act", "rms_norm_eps", "rope_theta", "architectures")


@pytest.mark.parametrize("key", OPTIONAL)
def test_a_null_in_an_optional_field_is_its_absence(checkpoint, key):
    config = json.loads((checkpoint / "config.json").read_text())
    assert model_of(config | {key: None}) == model_of({k: v for k, v in config.items() if k != key})


def test_a_null_within_the_scaling_of_positions_is_its_absence(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert model_of(config | {"rope_scaling": {"rope_type": None, "factor": None}}) == model_of(config)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", INDEX])
def test_a_byte_order_mark_is_skipped_and_utf_16_is_named(checkpoint, tmp_path, name):
    copy_of(checkpoint, tmp_path)
    shard(tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_model(tmp_path)[0] == V05
    (tmp_path / name).write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=f"{name} is encoded in UTF-16"):
        read_model(tmp_path)


# ---- The command ----


def test_the_command_makes_a_finished_run_and_overwrites_none(ghost, checkpoint, tmp_path):
    workdir, new, list_ = tmp_path / "runs" / "llama", tmp_path / "new", tmp_path / "list"
    list_.mkdir()
    (list_ / "config.json").write_text("[]")
    command = ("ghost_jax.import_model", f"--from={checkpoint}", f"--workdir={workdir}")
    assert "LlamaForCausalLM" in ghost(*command).stdout
    model, params, step = load_model(workdir, make_mesh())
    assert (model, step) == (V05, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), read_model(checkpoint)[1])
    files = {"config.json", "data.json", "environment.json", "status.json", "tokenizer.json", "checkpoints"}
    assert {path.name for path in workdir.iterdir()} == files
    said = ghost.together(
        {
            "holds something already": lambda: ghost.refused(*command),
            "holds no checkpoint": lambda: ghost.refused(command[0], "--from=nowhere", f"--workdir={new}"),
            "is no JSON object": lambda: ghost.refused(command[0], f"--from={list_}", f"--workdir={new}"),
        }
    )
    for expected, paragraph in said.items():
        assert expected in paragraph
    assert not new.exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_an_imported_model_is_tuned_and_scored_by_the_ordinary_commands(ghost, tmp_path):
    shape = dataclasses.replace(V05, kv_heads=2, tied=False, attention_bias=False, context=512)
    _, out = exported(tmp_path, shape)
    save_vocabulary(out, foreign_vocabulary(CHAT.vocab_size))
    runs = tmp_path / "runs"
    base, chat, again = runs / "llama", runs / "chat", runs / "again"
    ghost("ghost_jax.import_model", f"--from={out}", f"--workdir={base}")
    flags = [f"--config.{key}" for key in ("steps=2", "data.seq_len=128", "eval_every=2", "save_every=2")]
    tune = ("ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--base={base}", f"--workdir={chat}", *flags)
    said = ghost(*tune).stdout
    assert "whatever llama was trained on" in said  # its data were not searched for the items
    model, _, step = load_model(chat, make_mesh())
    assert (model.kv_heads, model.tied, step) == (2, False, 2)
    score = json.loads((chat / "evals" / "ctibench.json").read_text())
    assert score["contamination"]["not_searched"] == ["whatever llama was trained on"]
    ghost("ghost_jax.chat", f"--workdir={chat}", "--max_new_tokens=2", f"--transcript={tmp_path / 'said.md'}")
    assert "chat, step 2" in (tmp_path / "said.md").read_text()
    out = tmp_path / "exported"
    ghost("ghost_jax.export", f"--workdir={chat}", f"--out={out}")
    ghost("ghost_jax.import_model", f"--from={out}", f"--workdir={again}")
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.device_get(load_model(run, make_mesh())[1]) for run in (chat, again)),
    )
    ghost("ghost_jax.report", f"--runs={runs}", f"--out={tmp_path / 'report'}")
    refused = ghost.refused(*tune[:2], f"--base={chat}", f"--workdir={runs / 'on a chat'}", code=2)
    assert "must be a base run" in refused
