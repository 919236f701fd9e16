"""The form of a publisher's JSON objects, described as data and checked here.

A form is a type or a tuple of types; `[form]` is a list of it; a dict has the form of each key that is read, or of all
keys by `ANY_KEY`. Other keys may hold anything. A key that holds `null` is absent.
"""

import datetime
from collections.abc import Iterable, Iterator
from typing import Any

from ghost_jax.core.errors import UserError

VERSION = 1  # raise it when the same objects are read or left out otherwise

ANY_KEY = "*"
_RETIRED = ("deprecated", "obsolete", "rejected")


def entries(things: Iterable[Any], form: dict, where: str, required: Iterable[str] = ()) -> Iterator[tuple[str, dict]]:
    """Yields the place of each object of a list, for messages, and the object as `read` returns it."""
    for position, thing in enumerate(things):
        place = f"{where}[{position}]"
        yield place, read(thing, form, place, required)


def read(thing: Any, form: dict, where: str, required: Iterable[str] = ()) -> dict:
    """Returns the keys of an object that a form names, without nulls.

    Raises UserError where it is not an object, a key has another form, or one of `required` is absent or blank.
    """
    if not isinstance(thing, dict):
        raise UserError(f"{where} is a {type(thing).__name__} instead of an object. Fetch the file again.")
    found = {}
    for key, inner in form.items():
        try:
            if thing.get(key) is not None:
                found[key] = _formed(thing[key], inner)
        except TypeError:
            raise UserError(f'{where}: "{key}" has not the form of its publisher. Fetch the file again.') from None
    require(found, required, where)
    return found


def require(thing: dict, keys: Iterable[str], where: str) -> None:
    """Raises UserError for the first of these keys that is absent or blank."""
    for key in keys:
        if key not in thing or (isinstance(thing[key], str) and not thing[key].strip()):
            raise UserError(f'{where} has no "{key}", or a blank one. Correct the object or fetch the file again.')


def is_retired(*marks: bool | str | None) -> bool:
    """Returns whether a publisher has withdrawn an entry, by its flags and its status."""
    return any(mark is True or str(mark).lower() in _RETIRED for mark in marks)


def timestamp(thing: dict, key: str, where: str) -> datetime.datetime:
    """Returns the ISO 8601 time under a key, in UTC where it names no zone; the earliest time where it is absent."""
    if key not in thing:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    try:
        time = datetime.datetime.fromisoformat(thing[key])
    except ValueError:
        raise UserError(f'{where}: "{key}" is not an ISO 8601 time. Fetch the file again.') from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _formed(value: Any, form: Any) -> Any:
    """Returns the value without nulls. Raises TypeError where it has another form."""
    if isinstance(form, list) and isinstance(value, list):
        return [_formed(item, form[0]) for item in value]
    if isinstance(form, dict) and isinstance(value, dict):
        forms = dict.fromkeys(value, form[ANY_KEY]) if ANY_KEY in form else form
        return {key: _formed(value[key], inner) for key, inner in forms.items() if value.get(key) is not None}
    if isinstance(form, list | dict) or not isinstance(value, form):
        raise TypeError
    return value
