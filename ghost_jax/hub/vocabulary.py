"""Vocabularies as Hugging Face keeps them: what goes into an exported folder, and what may come out of another's."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers, processors

from ghost_jax.core.atomic_io import read_text
from ghost_jax.core.errors import UserError
from ghost_jax.text.chat_format import Message, render
from ghost_jax.text.mcq_format import LETTERS, letter_ids
from ghost_jax.text.tokenizer import ASSISTANT, BOS, END, EOS, UNK, USER, Tokenizer

# What `text.chat.render` makes of messages, in Jinja. There are two roles, and a content stands as it is.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('The roles are user and assistant.') }}"
    "{% endif %}"
    f"{{{{ '{USER}' if message['role'] == 'user' else '{ASSISTANT}' }}}}"
    f"{{{{ message['content'] }}}}{{{{ '{END}' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)
# Of everything that a byte-level BPE must give back as it was
PROBE = "Naïve café, 日本語 🙂\n\n\tdef f(x):  return 1234567 # don't\r\n  CVE-2021-44228\u00a0…"

ANY: Any = object()
KEPT = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")  # of what a text is split at
# The parts of a tokenizer.json that may change ids or lose text: the types that each may have, their fields, and the
# values under which a text has one list of ids and comes back from it. Null is the absence of a field.
# What comes around a text (post_processor) and how many are put in a row (truncation, padding) is ours to say.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "normalizer": {},
    "pre_tokenizer": {
        "ByteLevel": {"add_prefix_space": (False,), "trim_offsets": ANY, "use_regex": ANY},
        "Digits": {"individual_digits": ANY},
        "Punctuation": {"behavior": KEPT},
        "Split": {"pattern": ANY, "behavior": KEPT, "invert": ANY},
    },
    "decoder": {"ByteLevel": {"add_prefix_space": ANY, "trim_offsets": ANY, "use_regex": ANY}},
    "model": {
        "BPE": {
            "dropout": (0,),
            "continuing_subword_prefix": ("",),
            "end_of_word_suffix": ("",),
            # Of characters without a token, which there are none: every byte has one.
            **dict.fromkeys(("unk_token", "fuse_unk", "byte_fallback"), ANY),
            **dict.fromkeys(("ignore_merges", "vocab", "merges"), ANY),
        }
    },
}
SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # what the parts of a part of the type Sequence are called


def files_of(vocabulary: Mapping, tokenizer: Tokenizer, context: int) -> dict[str, dict]:
    """Returns file name -> content of an exported folder's vocabulary.

    A base gets no chat template. Generation ends with a turn or with a text, whichever comes first.

    Args:
      vocabulary: the run's `tokenizer.json`, read.
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
    if tokenizer.has_roles:
        settings["chat_template"] = CHAT_TEMPLATE
    # Its template only tells us the names of the ends of a text; there it would put them around every text.
    return {
        "tokenizer.json": {**vocabulary, "post_processor": None},
        "tokenizer_config.json": settings,
        "generation_config.json": {**ids, "do_sample": False},
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the ids that configs name: what begins a text, what ends one, what fills a row up."""
    ends = tokenizer.end_ids
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def adopt(folder: Path, vocab_size: int) -> Tokenizer:
    """Returns the vocabulary of a checkpoint made elsewhere, with as many ids as its model has rows.

    What begins and ends a text there is found by our names for it too. Rows without a token get reserved ones.

    Raises UserError where the vocabulary is no byte-level BPE that gives every text back, or too large.
    """
    path = folder / "tokenizer.json"
    try:
        text = read_text(path)
        vocabulary = json.loads(text)
        _check(path, _unlike_ours(vocabulary))  # before the library, which panics at some of it
        backend = tokenizers.Tokenizer.from_str(text)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer.json. A SentencePiece tokenizer.model cannot be read; fetch a checkpoint that "
            "has its vocabulary as tokenizer.json."
        ) from None
    except UserError:
        raise
    except Exception as fault:  # the library raises plain Exception
        raise UserError(f"{path} is no tokenizer: {fault}. Fetch the checkpoint again.") from None
    # transformers reads the first for older checkpoints alone; what the second says counts.
    settings = _settings(folder / "special_tokens_map.json") | _settings(folder / "tokenizer_config.json")
    try:
        _check(path, _changed_by(settings, vocabulary))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} is broken ({fault}). Fetch the checkpoint again."
        ) from None
    for token in vocabulary.get("added_tokens", ()):
        if (found := backend.token_to_id(token["content"])) != token["id"]:
            raise UserError(
                f"{path} gives the added token {token['content']!r} the id {found}, and it should be {token['id']}. "
                "Fetch the checkpoint again."
            )
    ids, count = backend.get_vocab(), backend.get_vocab_size()
    if count > vocab_size or set(ids.values()) != set(range(count)):
        raise UserError(
            f"{path} has {count:,} tokens for the {vocab_size:,} rows of the model, or leaves ids out between them: it "
            "is of another model. Fetch the checkpoint again."
        )
    begins, ends = (_content(settings.get(key)) for key in ("bos_token", "eos_token"))
    if ends not in ids:
        raise UserError(
            f"{folder} does not say which token ends a text: tokenizer_config.json must name an eos_token of the "
            "vocabulary. Fetch the checkpoint again, tokenizer_config.json included."
        )
    if begins not in ids:
        begins = ends
    backend.add_special_tokens([begins, ends, *(f"<|reserved_{i}|>" for i in range(count, vocab_size))])
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    if (begins, ends) != (BOS, EOS):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}",
            special_tokens=[
                {"id": name, "ids": [ids[token]], "tokens": [token]} for name, token in ((BOS, begins), (EOS, ends))
            ],
        )
    return _proven(Tokenizer(backend), path)


def _check(path: Path, found: Iterator[str]) -> None:
    """Raises UserError where something was found that we do not compute."""
    for field in found:
        raise UserError(
            f"The vocabulary {path} cannot be used: {field}. Only a byte-level BPE is read, under which every text has "
            "one list of ids and comes back from it byte by byte. Import another checkpoint."
        )


def _unlike_ours(vocabulary: Mapping) -> Iterator[str]:
    """Yields the fields of a `tokenizer.json`, with their values, under which it is no such vocabulary."""
    model, added = vocabulary["model"], vocabulary.get("added_tokens", [])
    for name, types in PARTS.items():
        for where, part in _flat(vocabulary.get(name), name):
            if part.get("type") not in types:
                yield f"{where}.type is {json.dumps(part.get('type'))}"
                continue
            fields = types[part["type"]] | {"type": ANY}
            for key, value in part.items():
                allowed = fields.get(key, ())
                if value is not None and allowed is not ANY and value not in allowed:
                    yield f"{where}.{key} is {json.dumps(value)}"
    count = Counter(part["type"] for _, part in _flat(vocabulary.get("pre_tokenizer"), "pre_tokenizer"))["ByteLevel"]
    if count != 1:
        yield f"pre_tokenizer has {count} parts of the type ByteLevel, and must have one"
    tokens, named = model["vocab"].keys(), {token["content"] for token in added}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if missing := sorted(alphabet - tokens):
        yield f"model.vocab lacks {missing[0]!r}, which stands for a byte"
    if strange := sorted(token for token in tokens - named if set(token) - alphabet):
        yield f"model.vocab has {strange[0]!r}, which is not spelt in the 256 bytes"
    if double := sorted(name for name in named & tokens if set(name) <= alphabet and not name.isascii()):
        yield f"the added token {double[0]!r} is spelt as other bytes in model.vocab"
    yield from _stripping(added)


def _changed_by(settings: Mapping, vocabulary: Mapping) -> Iterator[str]:
    """Yields what `tokenizer_config.json` changes of a `tokenizer.json` when transformers loads both."""
    if settings.get("add_prefix_space"):
        yield "add_prefix_space in tokenizer_config.json is true"
    added = {int(number): token for number, token in settings.get("added_tokens_decoder", {}).items()}
    known = {token["id"]: token["content"] for token in vocabulary.get("added_tokens", ())}
    for number, token in added.items():
        if known.get(number) != token["content"]:
            yield f"tokenizer_config.json adds the token {token['content']!r} as {number}, and tokenizer.json does not"
    yield from _stripping(added.values())


def _stripping(added: Iterable[Mapping]) -> Iterator[str]:
    """Yields the added tokens that take blanks beside them away. A special one is never found in a text."""
    for token in added:
        for flag in ("lstrip", "rstrip"):
            if token.get(flag) and not token.get("special"):
                yield f"{flag} of the added token {token['content']!r} is true"


def _flat(part: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Yields a part of a `tokenizer.json`, or the parts of a sequence, each with its place; nothing for null."""
    inner = next((key for key in SEQUENCES if part and part.get("type") == "Sequence" and key in part), None)
    if inner:
        for number, each in enumerate(part[inner]):
            yield from _flat(each, f"{where}.{inner}[{number}]")
    elif part is not None:
        yield where, part


def _settings(path: Path) -> dict:
    """Returns the object in a JSON file, without its nulls; an empty one where the file is absent."""
    try:
        return {key: value for key, value in json.loads(read_text(path)).items() if value is not None}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as fault:
        raise UserError(f"{path} is broken ({fault}). Fetch the checkpoint again.") from None


def _content(token: Any) -> str | None:
    """Returns the text of a token, which configs write as such or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _proven(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """Returns the tokenizer, tried on what it will be asked. Raises UserError where it fails."""
    chat = tokenizer.with_chat_tokens([])
    ids, _ = render(chat, [Message("user", PROBE)])
    if chat.decode(ids[1:-1]) != PROBE:
        raise UserError(f"The vocabulary {path} does not give a text back as it was. Import another checkpoint.")
    try:
        letter_ids(chat, len(LETTERS))
    except AssertionError as fault:
        raise UserError(f"The vocabulary {path} cannot answer multiple choice: {fault}.") from None
    return tokenizer
