"""Vocabularies in Hugging Face's format: written into an exported folder, read from a checkpoint made elsewhere."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers, processors

from ghost_jax.core.atomic_io import read_text
from ghost_jax.core.errors import UserError
from ghost_jax.hub.chat_template import read_template, template_text
from ghost_jax.text.mcq_format import LETTERS, letter_ids
from ghost_jax.text.tokenizer import BOS, BOS_FIRST, BOS_IN_CHAT, END, EOS, PAD, TEMPLATE, UNK, Tokenizer

PROBE = "Naïve café, 日本語 🙂\n\n\tdef f(x):  return 1234567 # don't\r\n  CVE-2021-44228\u00a0…"

# The types that each part of a tokenizer.json may have, and the values of their fields under which a text has one list
# of ids and decodes to itself. Null is the absence of a field. Its truncation and padding are not used, and of its
# post-processor only whether it puts BOS in front.
TYPES = {
    "normalizer": ("NFC",),  # Qwen's: a text in another form is encoded, and decoded, in this one
    "pre_tokenizer": ("ByteLevel", "Digits", "Punctuation", "Split"),
    "decoder": ("ByteLevel",),
    "model": ("BPE",),
}
NEUTRAL = {
    "add_prefix_space": (False,),
    "behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"),  # of a split: no text is lost
    "dropout": (0,),
    "continuing_subword_prefix": ("",),
    "end_of_word_suffix": ("",),
}
SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # the fields with the parts of a Sequence


def files_of(vocabulary: Mapping, tokenizer: Tokenizer, context: int) -> dict[str, dict]:
    """Returns file name -> content of an exported folder's vocabulary; `vocabulary` is the run's `tokenizer.json`.

    A base model gets no chat template.
    """
    ids = special_ids(tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokenizer.decode([ids["bos_token_id"]]),
        "eos_token": tokenizer.decode([tokenizer.eos_id]),
        "pad_token": tokenizer.decode([ids["pad_token_id"]]),
    }
    if tokenizer.has(UNK):
        settings["unk_token"] = UNK
    spelled = as_imported(vocabulary)
    if tokenizer.template:
        settings["chat_template"] = tokenizer.template.text
    elif vocabulary["post_processor"] is None:  # our own base, whose documents begin with BOS
        begins = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_id)])
        spelled["post_processor"] = json.loads(begins.__getstate__())
    return {
        "tokenizer.json": spelled,
        "tokenizer_config.json": settings,
        "generation_config.json": {**ids, "do_sample": False},
    }


def as_imported(vocabulary: Mapping) -> dict:
    """Returns a run's `tokenizer.json` without the reserved tokens and the post-processor that we add at import."""
    *given, _ = (vocabulary["post_processor"] or {}).get("processors", [None])
    processor = {"type": "Sequence", "processors": given} if len(given) > 1 else given[0] if given else None
    tokens = list(vocabulary["added_tokens"])
    while tokens and tokens[-1]["content"] == f"<|reserved_{tokens[-1]['id']}|>":
        tokens.pop()
    return {**vocabulary, "added_tokens": tokens, "post_processor": processor}


def special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the ids that configs name: of a text's begin and end, and of padding."""
    ends = tokenizer.end_ids
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def read_vocabulary(folder: Path, vocab_size: int) -> Tokenizer:
    """Returns the vocabulary of a checkpoint made elsewhere, with reserved tokens up to the rows of its model.

    The tokens that begin and end a text there are found by our names BOS and EOS too.

    Raises UserError where it is not a byte-level BPE that decodes every text to itself, or of another size.
    """
    path = folder / "tokenizer.json"
    try:
        text = read_text(path)
        # transformers reads special_tokens_map.json for older checkpoints only.
        settings = _settings(folder / "special_tokens_map.json") | _settings(folder / "tokenizer_config.json")
        _check(path, _problems(json.loads(text), settings))  # before the library, which panics at some of them
        backend = tokenizers.Tokenizer.from_str(text)
        names = {key: token for key, each in settings.items() if key.endswith("_token") and (token := _content(each))}
        _check(path, _mismatches(backend, json.loads(text).get("added_tokens", ()), vocab_size, names.get("eos_token")))
        return _extended(backend, names, vocab_size, path, settings)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer.json. A SentencePiece tokenizer.model cannot be read. Fetch a checkpoint that "
            "has its vocabulary as tokenizer.json."
        ) from None
    except UserError:
        raise
    except Exception as fault:  # the library raises plain Exception
        raise UserError(
            f"{path} or tokenizer_config.json is corrupt ({fault!r}). Fetch the checkpoint again."
        ) from None


def _extended(backend: tokenizers.Tokenizer, names: Mapping, rows: int, path: Path, settings: Mapping) -> Tokenizer:
    """Returns our tokenizer with reserved tokens, our names and the chat template, after encoding some texts."""
    ids, count, ends = backend.get_vocab(), backend.get_vocab_size(), names["eos_token"]
    begins, pads = (names[key] if names.get(key) in ids else ends for key in ("bos_token", "pad_token"))
    named = {BOS: begins, EOS: ends} | ({PAD: pads} if pads != ends else {})
    backend.add_special_tokens([begins, ends, *(f"<|reserved_{i}|>" for i in range(count, rows))])
    backend.no_truncation()
    backend.no_padding()
    entries = [{"id": name, "ids": [ids[token]], "tokens": [token]} for name, token in named.items()]
    given = [backend.post_processor] if backend.post_processor else []
    puts_bos = any(json.dumps(begins, ensure_ascii=False) in each.__getstate__().decode() for each in given)
    if settings.get("add_bos_token", puts_bos) != puts_bos:  # which transformers and llama.cpp follow
        puts_bos = not puts_bos
        first = processors.TemplateProcessing(single=f"{begins} $A", special_tokens=[(begins, ids[begins])])
        given = [first] * puts_bos
    if END not in ids and (template := read_template(path.parent, settings, names, backend)):
        entries.append({"id": TEMPLATE, "ids": [0], "tokens": [json.dumps(dataclasses.asdict(template))]})
    elif puts_bos and (END not in ids or template_text(path.parent, settings).startswith(BOS_FIRST)):  # ours, exported
        entries.append({"id": BOS_IN_CHAT, "ids": [ids[begins]], "tokens": [begins]})
    if given or any(entry["tokens"] != [entry["id"]] for entry in entries):
        last = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=entries)
        backend.post_processor = processors.Sequence([*given, last])
    tokenizer = Tokenizer(backend)
    if tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
        _check(path, ["a text does not decode to itself"])
    try:
        letter_ids(tokenizer.with_chat_tokens([]), len(LETTERS))
    except AssertionError as fault:
        _check(path, [f"it cannot answer multiple choice: {fault}"])
    return tokenizer


def _check(path: Path, problems: Iterable[str]) -> None:
    """Raises UserError with the first problem, if there is one."""
    if problem := next(iter(problems), None):
        raise UserError(
            f"The vocabulary {path} cannot be used: {problem}. Only a byte-level BPE is read, under which every text "
            "has one list of ids and decodes to itself. Import another checkpoint, or fetch this one again."
        )


def _problems(vocabulary: Mapping, settings: Mapping) -> Iterator[str]:
    """Yields the fields of a tokenizer.json and a tokenizer_config.json that we do not compute, with their values."""
    for name, types in TYPES.items():
        for where, part in _flat(vocabulary.get(name), name):
            if part.get("type") not in types:
                yield f"{where}.type is {json.dumps(part.get('type'))}"
            for key, allowed in NEUTRAL.items() if name != "decoder" else ():
                if part.get(key) is not None and part[key] not in allowed:
                    yield f"{where}.{key} is {json.dumps(part[key])}"
    count = sum(part["type"] == "ByteLevel" for _, part in _flat(vocabulary.get("pre_tokenizer"), ""))
    if count != 1:
        yield f"pre_tokenizer has {count} parts of the type ByteLevel, and must have one"
    added = vocabulary.get("added_tokens", [])
    tokens, named = vocabulary["model"]["vocab"].keys(), {token["content"] for token in added}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    for token in sorted(alphabet - tokens):
        yield f"model.vocab lacks {token!r}, which stands for a byte"
    for token in sorted(tokens - named):
        if set(token) - alphabet:
            yield f"model.vocab has {token!r}, which is not spelt in the 256 bytes"
    for token in sorted(named & tokens):
        if set(token) <= alphabet and not token.isascii():
            yield f"the added token {token!r} is spelt as other bytes in model.vocab"
    if settings.get("add_prefix_space"):
        yield "add_prefix_space in tokenizer_config.json is true"
    known = {token["id"]: token["content"] for token in added}
    changed = {int(number): token for number, token in settings.get("added_tokens_decoder", {}).items()}
    for number, token in changed.items():
        if known.get(number) != token["content"]:
            yield f"tokenizer_config.json adds the token {token['content']!r} as {number}, and tokenizer.json does not"
    for token in (*added, *changed.values()):
        for flag in ("lstrip", "rstrip"):  # takes blanks away; special tokens are never found in a text
            if token.get(flag) and not token.get("special"):
                yield f"{flag} of the added token {token['content']!r} is true"


def _mismatches(backend: tokenizers.Tokenizer, added: Iterable[Mapping], rows: int, ends: str | None) -> Iterator[str]:
    """Yields where the ids of a vocabulary differ from its file or from the rows of its model."""
    ids, count = backend.get_vocab(), backend.get_vocab_size()
    for token in added:
        if (found := backend.token_to_id(token["content"])) != token["id"]:
            yield f"the added token {token['content']!r} has the id {found}, and it should be {token['id']}"
    if count > rows:
        yield f"it has {count:,} tokens for the {rows:,} rows of the model"
    if set(ids.values()) != set(range(count)):
        yield "its ids leave gaps"
    if ends not in ids:
        yield "tokenizer_config.json names no eos_token of the vocabulary"


def _flat(part: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Yields a part of a tokenizer.json with its place, or the parts of a Sequence; nothing for null."""
    inner = next((key for key in SEQUENCES if part and part.get("type") == "Sequence" and key in part), None)
    if inner:
        for number, each in enumerate(part[inner]):
            yield from _flat(each, f"{where}.{inner}[{number}]")
    elif part is not None:
        yield where, part


def _settings(path: Path) -> dict:
    """Returns the object in a JSON file, without its nulls; an empty one where the file is absent."""
    if not path.is_file():
        return {}
    return {key: value for key, value in json.loads(read_text(path)).items() if value is not None}


def _content(token: Any) -> str | None:
    """Returns the text of a token, which configs write as such or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
