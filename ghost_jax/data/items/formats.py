"""Reading a benchmark exactly as it was published. `FORMATS` is the one table to extend.

No row is dropped silently, because the accuracy over "the rows that parsed" is that of another benchmark. A row with a
blemish (an empty option, a lower-case gold letter) is kept, scored and named as a *quirk*. A row whose gold is unknown
stops the reading with its file and place. A question that its publisher answers with several letters, or none, is *left
out*, named and counted.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import path_of
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.artifact_cache import sha256_of
from ghost_jax.data.storage.files import quoted, refusal
from ghost_jax.text.mcq_format import LETTERS

# The name "CTIBench MCQ" belongs to these bytes alone (xashru/cti-bench): an edited copy goes by its file name.
CTIBENCH_MCQ_SHA256 = "11e0af8db2dae9706c6e79901d2390bcdf9746e8feccbd9ba10682df649bcc6a"


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of `FORMATS`: where the files of a benchmark have the parts of an item.

    A part is under a column of the header or a key of the object; or at a place of the row, where there is no header.
    """

    name: str
    suffixes: tuple[str, ...]  # of its files, without that of a compression
    question: str | int
    options: tuple[str | int, ...] | str  # the part of each; or of all, an object {"A": …} or a list ["A: …"]
    answer: str | int
    # id, url: of the item; small ones are of a user's own file, and may be absent
    id: str = ""
    url: str = ""
    inside: str = ""  # the key of the list of items, where a file is one object
    letters: str = LETTERS  # what an answer calls the options, in their order
    several: bool = False  # whether an answer may be several letters or none; such an item is left out

    @property
    def parts(self) -> list[str | int]:
        """The part of each: id and url where there are any, question, options and answer."""
        options = [self.options] if isinstance(self.options, str) else self.options
        return [*filter(None, (self.id, self.url)), self.question, *options, self.answer]

    @property
    def needed(self) -> list[str | int]:
        """The parts without those that may be absent."""
        return [part for part in self.parts if part not in ("id", "url")]

    @property
    def shape(self) -> str:
        """What a file of it holds, in words."""
        suffixes = " or ".join(self.suffixes)
        if isinstance(self.question, int):
            return f"{suffixes} with {len(self.parts)} cells a row: question, options, the right letter; no header"
        named = ", ".join(f"{part} by letter" if part == self.options else str(part) for part in self.needed)
        return f"{suffixes} with {named}" + f", in a list {self.inside}" * bool(self.inside)

    def recognises(self, first: Any) -> bool:
        """Returns whether a file with this first row or value is of the format, even where a part is missing."""
        if self.inside:
            return isinstance(first, dict) and isinstance(first.get(self.inside), list)
        if isinstance(self.question, int):
            return len(first) == len(self.parts) and first[self.answer].strip().upper() in tuple(self.letters)
        names = first if isinstance(first, list | dict) else ()
        return any(str(name).strip() in (self.question, self.answer) for name in names)


_FOUR = ("Option A", "Option B", "Option C", "Option D")
FORMATS = (
    # xashru/cti-bench
    Format("CTIBench MCQ", (".tsv",), "Question", _FOUR, "GT", url="URL"),
    # zefang-liu/secqa, as published or as JSON lines; your own CSV may have id and url
    Format("SecQA", (".csv", ".jsonl"), "Question", tuple("ABCD"), "Answer", id="id", url="url"),
    # hendrycks/test
    Format("MMLU", (".csv",), 0, (1, 2, 3, 4), 5),
    # cybermetric/CyberMetric
    Format("CyberMetric", (".json",), "question", "answers", "solution", inside="questions"),
    # XuanwuAI/SecEval. Of its 2,189 questions 934 have several letters, the same letter twice or none. Its "source" is
    # a textbook or catalogue and no page.
    Format("SecEval", (".json",), "question", "choices", "answer", id="id", several=True),
    Format("your own items", (".jsonl",), "question", "options", "answer", id="id", url="url"),
)


def read_items(path: str | Path, page: str = "") -> Items:
    """Reads a benchmark file of one of the `FORMATS`, recognised by its suffix and its first row or value.

    Args:
      page: the key or column whose value is the page of an item, in place of its url.

    Raises:
      UserError: the file is absent, empty, not UTF-8 or of no known format, an id is there twice, or a row can neither
        be scored nor left out with good reason.
    """
    path = path_of(str(path))
    form, records = _recognised(path)
    items: list[Item] = []
    quirks: list[str] = []
    left_out: list[str] = []
    place_of: dict[str, str] = {}
    for place, record in records:
        try:
            item, gold = _item(form, place, record, page)
            if item.id in place_of:
                raise ValueError(f"the id {quoted(item.id)} is already that of {place_of[item.id]}")
            place_of[item.id] = place
            letters = form.letters[: len(item.options)]
            if form.several and len(gold) != 1 and set(gold) <= set(letters):
                left_out.append(f"{place}: the answer of {quoted(item.id)} is {quoted(gold)}, not one letter; left out")
                continue
            item = dataclasses.replace(item, answer=_gold_index(item, gold, letters))
        except ValueError as fault:
            raise refusal(path, place, str(fault), f"Give {form.shape}.") from None
        items.append(item)
        quirks += [f"{place}: {quirk}" for quirk in _quirks_of(item, gold, letters)]
    if not items:
        why = f" that can be scored ({left_out[0]})" if left_out else ""
        raise UserError(f"{path}: the file holds no questions{why}. Give the complete benchmark file.")
    sha256 = sha256_of(path)
    name = "CTIBench MCQ" if sha256 == CTIBENCH_MCQ_SHA256 else path.name
    return Items(name, str(path), sha256, tuple(items), tuple(quirks), tuple(left_out))


def _recognised(path: Path) -> tuple[Format, Iterable[tables.Placed]]:
    """Returns the format of a file, and its records with their places."""
    suffix = tables.suffix_of(path)
    forms = [each for each in FORMATS if suffix in each.suffixes]
    _, first = next(tables.rows(path), ("", None)) if forms else ("", None)
    form = next((each for each in forms if first is not None and each.recognises(first)), None)
    if form is None:
        if not path.exists():
            raise UserError(f"There is no file {path}. Correct its name.")
        known = "; ".join(f"{each.name}: {each.shape}" for each in FORMATS)
        raise UserError(f"{path} holds no test items in a known format. Give one of these: {known}.")
    if form.inside:
        return form, ((f"item {number}", record) for number, record in enumerate(first[form.inside], start=1))
    if isinstance(form.question, int):
        return form, ((place, dict(enumerate(cells))) for place, cells in tables.rows(path))
    return form, tables.read(path, form.needed)


def _item(form: Format, place: str, record: Any, page: str) -> tuple[Item, str]:
    """Returns the item of a record, its answer not yet known, and the gold letter as it is written."""
    if not isinstance(record, dict):
        raise ValueError("this is no JSON object")
    if isinstance(form.question, int) and len(record) != len(form.parts):
        raise ValueError(f"the row has {len(record)} cells")
    question = _text(record, form.question)
    if isinstance(form.options, str):
        options = _by_letter(form.options, _value(record, form.options))
    else:
        options = tuple(_text(record, part) for part in form.options)
    gold = _text(record, form.answer)
    name, url = (record.get(part) if part else None for part in (form.id, form.url))  # a column may be called ""
    url = _page(record, page) if page else str(url or "")
    return Item(str(name) if name not in (None, "") else place, question, options, -1, url), gold


def _value(record: dict, part: str | int) -> Any:
    if part not in record:
        raise ValueError(f'there is no "{part}"; there are: {quoted(", ".join(map(str, record)) or "none", 200)}')
    return record[part]


def _text(record: dict, part: str | int) -> str:
    found = _value(record, part)
    if not isinstance(found, str):
        raise ValueError(f'"{part}" must be text')
    return found


def _page(record: dict, key: str) -> str:
    """Returns the text or number under a key of a record."""
    if not isinstance(record.get(key), str | int):
        raise ValueError(f"there is no text under {quoted(key)}, which data.question_group names")
    return str(record[key])


def _by_letter(part: str, given: Any) -> tuple[str, ...]:
    """Returns the options of an object {"A": …, "B": …} or a list ["A: …", "B: …"] in the order of their letters."""
    letters = LETTERS[: len(given)] if isinstance(given, dict | list) else ""
    if isinstance(given, list):
        parted = [str(each).partition(":") for each in given]
        given = {letter: text.removeprefix(" ") for letter, _, text in parted}
    if not letters or given.keys() != set(letters) or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f'"{part}" must be texts under the letters from A on, at most {len(LETTERS)}')
    return tuple(given[letter] for letter in letters)


def _gold_index(item: Item, gold: str, letters: str) -> int:
    """Returns the index of the gold option of an item that can be scored."""
    if not item.question.strip():
        raise ValueError("the question is empty")
    if sum(bool(option.strip()) for option in item.options) < 2:
        raise ValueError("the item has fewer than 2 options with text")
    letter = gold.strip().upper()
    if letter not in tuple(letters):
        raise ValueError(f"the gold answer {quoted(gold)} is not one of the letters {', '.join(letters)}")
    return letters.index(letter)


def _quirks_of(item: Item, gold: str, letters: str) -> Iterator[str]:
    """Yields a sentence for each blemish of an item that is scored all the same."""
    position_of: dict[str, int] = {}
    for position, option in enumerate(item.options):
        if not option.strip():
            is_gold = ", and it is the gold one" if position == item.answer else ""
            yield f"option {LETTERS[position]} is empty{is_gold}; kept as published, the prompt shows it blank"
            continue
        twin = position_of.setdefault(option.strip(), position)
        if twin != position:
            pair = f"options {LETTERS[twin]} and {LETTERS[position]}"
            yield f"{pair} are equal; kept as published, only the gold letter counts as right"
    if gold != letters[item.answer]:
        yield f"the gold letter is written {quoted(gold)}; read as {letters[item.answer]}"
