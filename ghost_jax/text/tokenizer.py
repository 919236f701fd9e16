"""Byte-level BPE: text to ids and back, exact on any bytes.

The base vocabulary is trained on the corpus and holds four special tokens. The chat stage adds three role tokens and
the anchor words, unless the vocabulary was imported with a chat template. Text is always encoded as text:
`<|ghost_end|>` in a user's text becomes its letters, never the role token, so no text can end a turn.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError

PAD, BOS, EOS, UNK = SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>")
LEAST_TOKENS = 256 + len(SPECIALS)  # of a vocabulary: one for each byte, and the special tokens
USER, ASSISTANT, END = ROLES = ("<|ghost_user|>", "<|ghost_assistant|>", "<|ghost_end|>")
# Entries of an imported vocabulary's post-processor: its `Template`, and that a conversation in ours begins with BOS.
TEMPLATE, BOS_IN_CHAT = "chat_template", "bos_in_chat"
BOS_FIRST = "{{ bos_token }}"
# `chat_format.render` in Jinja, without BOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] == 'system' and messages[1:] and messages[1]['role'] == 'user' %}"
    "{% elif message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('The roles are user and assistant, and of the first turn system.') }}{% else %}"
    f"{{{{ '{USER}' if message['role'] == 'user' else '{ASSISTANT}' }}}}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    f"{{{{ message['content'] }}}}{{{{ '{END}' }}}}{{% endif %}}"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


# The printable character that spells each byte in every byte-level BPE: its own, or one from U+0100 on, in turn
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_MOVED = [byte for byte in range(256) if chr(byte) not in _ALPHABET]
_CHAR_OF_BYTE = {byte: chr(256 + _MOVED.index(byte) if byte in _MOVED else byte) for byte in range(256)}
_BYTE_OF_CHAR = {char: byte for byte, char in _CHAR_OF_BYTE.items()}
# Python decodes bytes that are not UTF-8 to lone surrogates (PEP 383), which the tokenizers library refuses.
_UNDECODABLE = re.compile("([\udc80-\udcff])")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte, as from a JSON escape


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A chat format. The ids behind an assistant's content begin with the token that ends its turn."""

    text: str  # in Jinja, for exports
    # "user assistant" -> the ids between the contents of these roles, and text to encode with the second content; "" in
    # place of a role is the begin or the end of a conversation
    between: dict[str, tuple[list[int], str]]
    strips: bool = False  # whether white space around a content is dropped


class Tokenizer:
    """A trained vocabulary. Immutable; `with_chat_tokens` returns a larger one.

    Attributes:
      vocab_size: number of ids, added tokens included.
      sha256: of the vocabulary's canonical JSON; equal vocabularies have equal hashes.
      bos_id, eos_id: begin and end of a text, whatever the vocabulary calls them.
      begins_texts: whether a plain text has BOS in front: in ours, and where an imported post-processor puts it there.
      pad_id: fills rows; `eos_id` where the vocabulary has no token for it.
      template: its chat format, ours or the one that it was imported with; None of a base.
      end_ids: what ends an answer: the end of a turn, if there is a chat format, and the end of a text.
      special_ids: all tokens that are not text.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.encode_special_tokens = True  # names of special tokens in a text are encoded as text
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        self.sha256: str = hashlib.sha256(backend.to_str().encode()).hexdigest()
        added = backend.get_added_tokens_decoder()
        specials = {token.content for token in added.values()}
        self._ids: dict[str, int] = backend.get_vocab()
        self._bytes = [b""] * self.vocab_size
        for token, i in self._ids.items():
            self._bytes[i] = token.encode() if token in specials else bytes(_BYTE_OF_CHAR[char] for char in token)
        self._id_of_byte = [self._ids.get(_CHAR_OF_BYTE[byte]) for byte in range(256)]
        # The last post-processor of an imported vocabulary maps our names of begin and end to its own tokens.
        processor = json.loads(backend.post_processor.__getstate__()) if backend.post_processor else {}
        *given, last = processor.get("processors", [processor])
        named = last.get("special_tokens", {})
        self._ids |= {name: token["ids"][0] for name, token in named.items()}
        self.bos_id, self.eos_id = self.id(BOS), self.id(EOS)
        self.pad_id = self.id(PAD) if self.has(PAD) else self.eos_id
        self.begins_texts = not processor or json.dumps(self.decode([self.bos_id])) in json.dumps(given)
        self.template = self._ours(BOS_IN_CHAT in named) if self.has(END) else None
        if TEMPLATE in named:
            self.template = Template(**json.loads(named[TEMPLATE]["tokens"][0]))
        stops = self.template.between["assistant "][0][:1] if self.template else []
        self.end_ids = list(dict.fromkeys([*stops, self.eos_id]))
        self.special_ids = [i for i, token in sorted(added.items()) if token.special]

    def id(self, token: str) -> int:
        """Returns the id of a special or role token; raises KeyError where the vocabulary lacks it."""
        return self._ids[token]

    def has(self, token: str) -> bool:
        """Returns whether the vocabulary has this special, role or anchor token."""
        return token in self._ids

    def encode(self, text: str | bytes) -> list[int]:
        """Returns the ids of `text`; each byte that is not UTF-8 (or lone surrogate of a str) becomes one id."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        elif _NO_BYTE.search(text):  # spelled as UTF-8 would spell it
            text = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for piece in _UNDECODABLE.split(text):
            if _UNDECODABLE.fullmatch(piece):
                ids.append(self._id_of_byte[ord(piece) - 0xDC00])
            else:
                ids += self._backend.encode(piece, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of many valid texts, on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes that `ids` stand for; the exact inverse of `encode`."""
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def with_chat_tokens(self, anchors: Iterable[str]) -> "Tokenizer":
        """Returns a copy with the role tokens and each anchor word as one token; old ids do not change."""
        if self.template and not self.has(END):  # imported with a chat template
            return self
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens(list(ROLES))
        backend.add_tokens([tokenizers.AddedToken(word, single_word=True, normalized=False) for word in anchors])
        return Tokenizer(backend)

    def _ours(self, bos: bool) -> Template:
        opens = {"user": [self.id(USER)], "assistant": [self.id(ASSISTANT)], "": []}
        ends = {role: [self.id(END)] if role else [self.bos_id] * bos for role in opens}
        between = {f"{one} {two}": (ends[one] + opens[two], "") for one in ends for two in opens}
        return Template(BOS_FIRST * bos + CHAT_TEMPLATE, between)

    def save(self, path: Path) -> None:
        """Writes `tokenizer.json` atomically."""
        write_text(path, self._backend.to_str(pretty=True))


def load(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`. Raises UserError where it is absent or broken."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        json.loads(text)
        return Tokenizer(tokenizers.Tokenizer.from_str(text))
    except FileNotFoundError:
        raise UserError(f"There is no tokenizer at {path}. The run is incomplete: repeat its train command.") from None
    except Exception as fault:  # the library raises plain Exception
        raise UserError(f"{path} is no tokenizer: {fault}. Delete it and repeat the command that made it.") from None


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE of exactly `vocab_size` ids, at least `LEAST_TOKENS`, the four special tokens first.

    A small corpus has too few merges: reserved ids fill the vocabulary, so that its size depends on the config alone.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=_ALPHABET,
            show_progress=False,
        ),
    )
    missing = vocab_size - backend.get_vocab_size()
    backend.add_special_tokens([f"<|reserved_{i}|>" for i in range(missing)])
    return Tokenizer(backend)
