"""The v0.5 model as a GGUF file, which llama.cpp and the programs built on it load.

llama.cpp rotates neighbouring dimensions of a head and Hugging Face its halves, so the rows of queries and keys are
permuted. Names of special tokens in a text stay text there too, unless a program asks for them to be parsed. An added
word that our vocabulary finds only between blanks (an anchor) is not found in texts by llama.cpp, which would find it
within other words: it reads its pieces, and writes it as usual.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.hub import llama
from ghost_jax.hub.vocabulary import as_imported
from ghost_jax.model.attention import rope_frequencies
from ghost_jax.model.config import ModelConfig
from ghost_jax.text.tokenizer import END, Tokenizer

FILE = "model.gguf"
DTYPES = ("float32", "float16", "bfloat16", "q8_0")
LAYER = {
    **{f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of the ways to split a text, by the parts of the pre-tokenizer: its types and patterns.
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _REST,): "qwen2",
}


def write(
    folder: Path, params: Mapping, model: ModelConfig, tokenizer: Tokenizer, vocabulary: Mapping, dtype: str, name: str
) -> int:
    """Writes `FILE`; returns its bytes.

    Args:
      params: of a model without `scan`.
      vocabulary: the run's `tokenizer.json`.
      dtype: of `DTYPES`, of the matrices; vectors are float32.

    Raises UserError where the vocabulary splits texts in a way that llama.cpp does not know.
    """
    import gguf  # not above: importing it takes half a second

    kinds = gguf.GGMLQuantizationType
    kind, file_type = {
        "float32": (kinds.F32, gguf.LlamaFileType.ALL_F32),
        "float16": (kinds.F16, gguf.LlamaFileType.MOSTLY_F16),
        "bfloat16": (kinds.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        "q8_0": (kinds.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    }[dtype]
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    writer.add_name(name)
    writer.add_file_type(file_type)
    _add_shape(writer, model)
    _add_vocabulary(writer, tokenizer, vocabulary, gguf.TokenType)
    for tensor, values in tensors_of(params, model):
        values = np.ascontiguousarray(values, np.float32)
        of = kinds.F32 if values.ndim == 1 else kind
        if of == kinds.Q8_0 and values.shape[-1] % gguf.GGML_QUANT_SIZES[of][0]:
            of = kinds.F16  # a row is not whole blocks
        writer.add_tensor(tensor, gguf.quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / FILE).stat().st_size


def _add_shape(writer: "gguf.GGUFWriter", model: ModelConfig) -> None:  # noqa: F821
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.mlp_dim)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.cached_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.head_width)
    writer.add_rope_freq_base(model.rope_base)


def _add_vocabulary(
    writer: "gguf.GGUFWriter",  # noqa: F821
    tokenizer: Tokenizer,
    vocabulary: Mapping,
    types: type,
) -> None:
    added = {token["id"]: token for token in vocabulary["added_tokens"]}
    spelled = {number: token for token, number in vocabulary["model"]["vocab"].items()}
    tokens = [added[i]["content"] if i in added else spelled[i] for i in range(tokenizer.vocab_size)]
    # Merges are pairs in newer files and one text in older ones; the spelling of a token has no blank.
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_of(vocabulary))
    writer.add_token_list(tokens)
    writer.add_token_types([_type_of(added.get(i), types) for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    # A document begins with it. Our conversations do not; of others the vocabulary's own post-processor tells.
    begins = json.dumps(tokenizer.decode([tokenizer.bos_id])) in json.dumps(as_imported(vocabulary)["post_processor"])
    writer.add_add_bos_token(not tokenizer.template or (begins and not tokenizer.has(END)))
    if tokenizer.template:
        writer.add_eot_token_id(tokenizer.end_ids[0])
        writer.add_chat_template(tokenizer.template.text)


def _type_of(added: Mapping | None, types: type) -> int:
    """Returns the type of a token. An anchor is as any other, so that it is not found in texts."""
    if added is None or (added["single_word"] and not added["special"]):
        return types.NORMAL
    return types.CONTROL if added["special"] else types.USER_DEFINED


def split_of(vocabulary: Mapping) -> str:
    """Returns llama.cpp's name for how a `tokenizer.json` splits texts. Raises UserError where it has none."""
    part = vocabulary["pre_tokenizer"]
    parts = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    patterns = [each["pattern"]["Regex"] for each in parts if "Regex" in each.get("pattern", ())]
    # A pattern alone splits the text; the bytes behind it are spelled without another split.
    named = SPLITS.get(tuple(patterns) or tuple(each["type"] for each in parts))
    digits = [each for each in parts if each["type"] == "Digits"]
    if named is None or any(not each["individual_digits"] for each in digits):
        raise UserError(
            "llama.cpp has no name for the way in which this vocabulary splits texts. Export with --format=hf, or "
            "import a model with the vocabulary of GPT-2, SmolLM, Llama 3 or Qwen 2."
        )
    return named


def tensors_of(params: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor in llama.cpp's names and order of dimensions."""
    for name, values in llama.tensors_of(params, model):
        stem, _, suffix = name.rpartition(".")
        if stem in TOP:
            yield f"{TOP[stem]}.{suffix}", values
            continue
        number, _, part = stem.removeprefix("model.layers.").partition(".")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = model.heads if part == "self_attn.q_proj" else model.cached_heads
            halves = values.reshape(heads, 2, model.head_width // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        yield f"blk.{number}.{LAYER[part]}.{suffix}", values
    if model.rope_factor != 1:
        plain = model.rope_base ** (-np.arange(model.head_width // 2) / (model.head_width // 2))
        yield "rope_freqs.weight", (plain / np.asarray(rope_frequencies(model))).astype(np.float32)
