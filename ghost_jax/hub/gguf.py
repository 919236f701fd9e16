"""The v0.5 model as a GGUF file, which llama.cpp and the programs built on it load.

llama.cpp rotates neighbouring dimensions of a head and Hugging Face its halves, so the rows of queries and keys are
permuted. Names of special tokens in a text stay text there too, unless a program asks for them to be parsed. An added
word that our vocabulary finds only between blanks (an anchor) is not found in texts by llama.cpp, which would find it
within other words: it reads its pieces, and writes it as usual.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType, TokenType

from ghost_jax.core.errors import UserError
from ghost_jax.hub import llama
from ghost_jax.model.attention import rope_frequencies
from ghost_jax.model.config import ModelConfig
from ghost_jax.text.tokenizer import END, Tokenizer

FILE = "model.gguf"
DTYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of the ways to split a text, by the parts of the pre-tokenizer: its types and patterns.
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _REST,): "qwen2",
}
PLAIN = {"individual_digits": True, "behavior": "Isolated", "invert": False}  # fields of these parts there


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
    kind, file_type = DTYPES[dtype]
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    writer.add_name(name)
    writer.add_file_type(file_type)
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
    _add_vocabulary(writer, tokenizer, vocabulary)
    for tensor, values in tensors_of(params, model):
        values = np.ascontiguousarray(values, np.float32)
        of = GGMLQuantizationType.F32 if values.ndim == 1 else kind
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[of][0]:
            of = GGMLQuantizationType.F16  # a row is not whole blocks of q8_0
        writer.add_tensor(tensor, gguf.quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / FILE).stat().st_size


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocabulary: Mapping) -> None:
    added = {token["id"]: token for token in vocabulary["added_tokens"]}
    spelled = {number: token for token, number in vocabulary["model"]["vocab"].items()}
    tokens = [added[i]["content"] if i in added else spelled[i] for i in range(tokenizer.vocab_size)]
    # Merges are pairs in newer files and one text in older ones; the spelling of a token has no blank.
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_of(vocabulary))
    writer.add_token_list(tokens)
    writer.add_token_types([_type_of(added.get(i)) for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(not tokenizer.has(END) and tokenizer.begins_texts)  # a conversation has its own beginning
    if tokenizer.template:
        writer.add_eot_token_id(tokenizer.end_ids[0])
        writer.add_chat_template(tokenizer.template.text)


def _type_of(added: Mapping | None) -> TokenType:
    """Returns the type of a token. An anchor is as any other, so that it is not found in texts."""
    if added is None or (added["single_word"] and not added["special"]):
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def split_of(vocabulary: Mapping) -> str:
    """Returns llama.cpp's name for how a `tokenizer.json` splits texts. Raises UserError where it has none."""
    part = vocabulary["pre_tokenizer"]
    parts = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    # ByteLevel without its regex spells the bytes and splits nothing.
    kinds = tuple(each.get("pattern", {}).get("Regex", each["type"]) for each in parts if each.get("use_regex", True))
    if kinds not in SPLITS or any(each.get(key, value) != value for each in parts for key, value in PLAIN.items()):
        raise UserError(
            "llama.cpp has no name for the way in which this vocabulary splits texts. Export with --format=hf, or "
            "import a model with the vocabulary of GPT-2, SmolLM, Llama 3 or Qwen 2."
        )
    return SPLITS[kinds]


def tensors_of(params: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor in llama.cpp's names and order of dimensions."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.layers)
    for name, values in llama.tensors_of(params, model):
        if ".q_proj." in name or ".k_proj." in name:
            heads = model.heads if ".q_proj." in name else model.cached_heads
            halves = values.reshape(heads, 2, model.head_width // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), values
    if model.rope_factor != 1:
        plain = model.rope_base ** (-np.arange(model.head_width // 2) / (model.head_width // 2))
        yield "rope_freqs.weight", (plain / np.asarray(rope_frequencies(model))).astype(np.float32)
