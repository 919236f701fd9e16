"""A user's own conversations: a file of `data.chats` is a dataset of the chat stage. The keys of a row tell its form.

messages  {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …, "train": false}, …]}
          (OpenAI's tuning files: "weight": 0 for "train": false)
ShareGPT  {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
Alpaca    {"instruction": …, "input": …, "output": …}
each      may have "system": …, the first turn
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.dedup import normalised
from ghost_jax.data.examples import BuildInputs, Conversation, Rows
from ghost_jax.data.own import rows
from ghost_jax.data.storage import files, tables
from ghost_jax.data.storage.schema import drawn_split
from ghost_jax.text.chat_format import Message

VERSION = 5  # raise it when the same file gives other conversations

UNREAD = ("history", "tools", "functions")  # what an answer may depend on, and no form here holds

ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant")}


def dataset(inputs: BuildInputs, name: str, path: Path) -> Rows:
    """Returns the rows of `read`."""
    return inputs.render(read(name, path))


def read(name: str, path: Path) -> Iterator[Conversation]:
    """Yields the conversations of a file. Raises UserError, which names the place, for one that is invalid.

    Several system turns become one, a blank line between. One conversation in ten is for validation, drawn from the
    words of the user's first turn; none is held out for a test. Null is the absence of a key.
    """
    seen: dict[str, str] = {}
    for place, row in tables.read(path):
        where = f"{path}, {place}"
        row = files.without_nulls(row)  # a Parquet file has every key in every row and turn
        turns = _checked(_turns(row, where), where)
        system = [turn.content for turn in turns if turn.role == "system"]
        others = turns[len(system) :]
        messages = (*([Message("system", "\n\n".join(system))] if system else []), *others)
        key = rows.id_of(row, where, f"{name}/{place.partition(' ')[2]}", seen)
        drawn = drawn_split(normalised(others[0].content))
        yield Conversation(key, name, messages, "validation" if drawn == "validation" else "train")
    if not seen:
        raise UserError(f"{path} holds no conversation. Write one a line, or leave out data.chats.{name}.")


def _turns(row: dict, where: str) -> list[Message]:
    """Returns the turns of a row of any form."""
    if unread := next((key for key in UNREAD if row.get(key) not in (None, "", [], "[]")), ""):
        raise UserError(f'{where}: "{unread}" is not read. Write all turns as "messages", without tools.')
    system = [Message("system", text)] if (text := rows.string(row, "system", where)) else []
    return [*system, *_said(row, where)]


def _said(row: dict, where: str) -> list[Message]:
    for form, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if form in row:
            turns = row[form]
            if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
                raise UserError(f'{where}: "{form}" must be a list of at least one object.')
            return [_turn(turn, role, content, f"{where}, turn {n}") for n, turn in enumerate(turns, start=1)]
    if "instruction" not in row:
        raise UserError(f'{where}: no "messages", "conversations" or "instruction", but {", ".join(row) or "no key"}.')
    asked = [rows.string(row, "instruction", where, needed=True), rows.string(row, "input", where)]
    answer = rows.string(row, "output", where, needed=True)
    return [Message("user", "\n\n".join(filter(None, asked))), Message("assistant", answer)]


def _turn(turn: dict, role: str, content: str, where: str) -> Message:
    said_by = rows.string(turn, role, where, needed=True)
    if said_by not in ROLES:
        raise UserError(f'{where}: "{role}" is {said_by[:100]}; use one of {", ".join(ROLES)}.')
    learnt = [turn[key] for key in ("train", "weight") if key in turn]
    if any(each not in (0, 1) for each in learnt) or (learnt and all(learnt) and ROLES[said_by] != "assistant"):
        raise UserError(
            f'{where}: "train" must be true or false, "weight" 0 or 1, and only a turn of the assistant can be learnt.'
        )
    return Message(ROLES[said_by], rows.string(turn, content, where, needed=True), all(learnt))


def _checked(turns: list[Message], where: str) -> list[Message]:
    """Returns the turns. Raises UserError where their order is invalid or none is learnt."""
    roles = [turn.role for turn in turns]
    others = list(itertools.dropwhile("system".__eq__, roles))
    if not others or others != ["user", "assistant"] * (len(others) // 2):
        raise UserError(
            f"{where}: the turns are of {', '.join(roles[:20])}. Write system turns first, then user and assistant in "
            "turns, the assistant last."
        )
    if not any(turn.train for turn in turns if turn.role == "assistant"):
        raise UserError(f"{where}: no turn of the assistant is learnt. Remove the row, or let one learn.")
    return turns
