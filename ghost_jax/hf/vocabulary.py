"""Vocabularies as Hugging Face keeps them: what goes into an exported folder, and what may come out of another's."""

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import pre_tokenizers, processors

from ghost_jax.errors import UserError
from ghost_jax.text.chat import Message, render
from ghost_jax.text.multiple_choice import letter_ids
from ghost_jax.text.tokenizer import ASSISTANT, BOS, END, EOS, PAD, UNK, USER, Tokenizer

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
        "eos_token": tokenizer.decode([tokenizer.id(EOS)]),
        "pad_token": tokenizer.decode([ids["pad_token_id"]]),
    }
    if tokenizer.has(UNK):
        settings["unk_token"] = UNK
    if tokenizer.has(ASSISTANT):
        settings["chat_template"] = CHAT_TEMPLATE
    # Its template only tells us the names of the ends of a text; there it would put them around every text.
    return {
        "tokenizer.json": {**vocabulary, "post_processor": None},
        "tokenizer_config.json": settings,
        "generation_config.json": {**ids, "do_sample": False},
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the ids that configs name: what begins a text, what ends one, what fills a row up."""
    eos = tokenizer.id(EOS)
    return {
        "bos_token_id": tokenizer.id(BOS),
        "eos_token_id": [tokenizer.id(END), eos] if tokenizer.has(END) else eos,
        "pad_token_id": tokenizer.id(PAD) if tokenizer.has(PAD) else eos,
    }


def adopt(folder: Path, vocab_size: int) -> Tokenizer:
    """Returns the vocabulary of a checkpoint made elsewhere, with as many ids as its model has rows.

    What begins and ends a text there is found by our names for it too. Rows without a token get reserved ones.

    Raises UserError where the vocabulary is no byte-level BPE that gives every text back, or too large.
    """
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        vocabulary, backend = json.loads(text), tokenizers.Tokenizer.from_str(text)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer.json. A SentencePiece tokenizer.model cannot be read; fetch a checkpoint that "
            "has its vocabulary as tokenizer.json."
        ) from None
    except Exception as fault:  # the library raises plain Exception
        raise UserError(f"{path} is no tokenizer: {fault}. Fetch the checkpoint again.") from None
    if why := _unlike_ours(vocabulary):
        raise UserError(
            f"The vocabulary {path} cannot be used: {why}. Only a byte-level BPE is read, which gives every text back "
            "byte by byte."
        )
    count = backend.get_vocab_size()
    if count > vocab_size or set(backend.get_vocab().values()) != set(range(count)):
        raise UserError(
            f"{path} has {count:,} tokens for the {vocab_size:,} rows of the model, or leaves ids out between them: it "
            "is of another model. Fetch the checkpoint again."
        )
    backend.add_special_tokens([f"<|reserved_{i}|>" for i in range(vocab_size - count)])
    backend.no_truncation()
    backend.no_padding()
    if backend.token_to_id(BOS) is None or backend.token_to_id(EOS) is None:
        begins, ends = _ends_of_a_text(folder)
        if ends is None or backend.token_to_id(ends) is None:
            raise UserError(
                f"{folder} does not say which token ends a text: tokenizer_config.json must name an eos_token of the "
                "vocabulary. Fetch the checkpoint again, tokenizer_config.json included."
            )
        named = {BOS: ends if begins is None or backend.token_to_id(begins) is None else begins, EOS: ends}
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}",
            special_tokens=[
                {"id": name, "ids": [backend.token_to_id(token)], "tokens": [token]} for name, token in named.items()
            ],
        )
    return _proven(Tokenizer(backend), path)


def _unlike_ours(vocabulary: Mapping) -> str:
    """Returns in words what keeps a `tokenizer.json` from being a byte-level BPE; empty where nothing does."""
    model, first = vocabulary["model"], vocabulary.get("pre_tokenizer") or {}
    splitters = first.get("pretokenizers", [first])
    byte_level = [splitter for splitter in splitters if splitter.get("type") == "ByteLevel"]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')} and no BPE"
    if not byte_level:
        return "it does not spell text in bytes"
    if byte_level[0].get("add_prefix_space"):
        return "it puts a blank before every text"
    if vocabulary.get("normalizer"):
        return f"it changes text before it reads it ({vocabulary['normalizer'].get('type')})"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its tokens carry marks of where a word ends"
    added = {token["content"] for token in vocabulary.get("added_tokens", ())}
    if not alphabet <= model["vocab"].keys() or set("".join(model["vocab"].keys() - added)) - alphabet:
        return "its tokens are not spelt in the 256 bytes"
    return ""


def _ends_of_a_text(folder: Path) -> tuple[str | None, str | None]:
    """Returns the tokens that `tokenizer_config.json` says begin and end a text."""
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = [settings.get(key) for key in ("bos_token", "eos_token")]
    except (ValueError, AttributeError) as fault:
        raise UserError(f"{path} is broken ({fault}). Fetch the checkpoint again.") from None
    tokens = (token.get("content") if isinstance(token, dict) else token for token in named)
    begins, ends = (token if isinstance(token, str) else None for token in tokens)
    return begins, ends


def _proven(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """Returns the tokenizer, tried on what it will be asked. Raises UserError where it fails."""
    chat = tokenizer.with_chat_tokens([])
    ids, _ = render(chat, [Message("user", PROBE)])
    if chat.decode(ids[1:-1]) != PROBE:
        raise UserError(f"The vocabulary {path} does not give a text back as it was. Import another checkpoint.")
    try:
        letter_ids(chat)
    except AssertionError as fault:
        raise UserError(f"The vocabulary {path} cannot answer multiple choice: {fault}.") from None
    return tokenizer
