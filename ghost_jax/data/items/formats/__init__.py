"""Reading a benchmark exactly as it was published.

To add a format, write the function that turns one record of a file into a `Row` and give it a row in `FORMATS`
(`published.py`). The checks of a row are here, for all formats alike.

A benchmark is scored complete or not at all. A row with a blemish (an empty option, a lower-case gold letter) is kept,
scored and named as a *quirk*. A row whose gold is unknown stops the reading with its file and place. A question that
its publisher answers with several letters, or none, is *left out*, named and counted: an accuracy over "the rows that
parsed" is an accuracy over another benchmark.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import path_of
from ghost_jax.data.items.formats.published import FORMATS
from ghost_jax.data.items.formats.row import Format, gold_index, quirks_of
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.artifact_cache import sha256_of
from ghost_jax.data.storage.files import quoted, refusal

# The name "CTIBench MCQ" belongs to these bytes alone (xashru/cti-bench): an edited copy goes by its file name.
CTIBENCH_MCQ_SHA256 = "11e0af8db2dae9706c6e79901d2390bcdf9746e8feccbd9ba10682df649bcc6a"


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
            row = form.row(place, record)
            if row.id in place_of:
                raise ValueError(f"the id {quoted(row.id)} is already that of {place_of[row.id]}")
            place_of[row.id] = place
            if row.left_out:
                left_out.append(f"{place}: {row.left_out}; left out")
                continue
            answer = gold_index(row)
            url = _page(record, page) if page else row.url
        except ValueError as fault:
            raise refusal(path, place, str(fault), f"Give {form.shape}.") from None
        items.append(Item(row.id, row.question, row.options, answer, url))
        quirks += [f"{place}: {quirk}" for quirk in quirks_of(row, answer)]
    if not items:
        why = f" that can be scored ({left_out[0]})" if left_out else ""
        raise UserError(f"{path}: the file holds no questions{why}. Give the complete benchmark file.")
    sha256 = sha256_of(path)
    name = "CTIBench MCQ" if sha256 == CTIBENCH_MCQ_SHA256 else path.name
    return Items(name, str(path), sha256, tuple(items), tuple(quirks), tuple(left_out))


def _page(record: Any, key: str) -> str:
    """Returns the text or number under a key of a record."""
    if not isinstance(record, dict) or not isinstance(record.get(key), str | int):
        raise ValueError(f"there is no text under {quoted(key)}, which data.question_group names")
    return str(record[key])


def _recognised(path: Path) -> tuple[Format, Iterable[tables.Placed]]:
    """Returns the format of a file, and its records with their places."""
    suffix, rows = tables.suffix_of(path), tables.rows(path)
    forms = [each for each in FORMATS if each.suffix == suffix]
    if not forms:
        raise _unknown(path, f'"{suffix}" is not a suffix of test items')
    first = next(rows, None)
    form = next((each for each in forms if first and each.recognises(first[1])), None)
    if form is None:
        raise _unknown(path, "the file holds no test items in a known format")
    if form.columns:
        return form, tables.read(path, form.columns)
    if suffix == ".json" and isinstance(first[1], dict) and "questions" in first[1]:
        return form, [(f"item {number}", record) for number, record in enumerate(first[1]["questions"], start=1)]
    return form, itertools.chain([first], rows)


def _unknown(path: Path, fault: str) -> UserError:
    known = "; ".join(f"{known.name} ({known.suffix}): {known.shape}" for known in FORMATS)
    return UserError(f"{path}: {fault}. Give one of these: {known}.")
