"""The form of a publisher's JSON objects: told as data, checked in one place, so that adapters may rely on it.

A form is a type or a tuple of types; `[form]` is a list of it; a dict gives the form of each key that an adapter reads,
or of all keys by `ANY_KEY`. Keys that a form does not name may hold anything. A key that
holds `null` is absent. What publishers say of an entry's status and time is read here too, by one rule for all.
"""

import datetime
from collections.abc import Iterable
from typing import Any

from ghost_jax.core.errors import UserError

VERSION = 1  # raise it when the same objects are read or left out otherwise

ANY_KEY = "*"
_RETIRED = ("deprecated", "obsolete", "rejected")


def read(thing: Any, form: dict, where: str) -> dict:
    """Returns the keys of an object that a form names, without those that hold null, at any depth.

    Raises:
      UserError: it is no object, or a key has another form; names the place as `where` says it, and the key.
    """
    if not isinstance(thing, dict):
        raise UserError(f"{where} is a {type(thing).__name__} instead of an object. Fetch the file again.")
    found = {}
    for key, inner in form.items():
        try:
            if thing.get(key) is not None:
                found[key] = _formed(thing[key], inner)
        except TypeError:
            raise UserError(
                f'{where}: "{key}" has not the form that its publisher gives it. Mend it or fetch the file again.'
            ) from None
    return found


def require(thing: dict, keys: Iterable[str], where: str) -> None:
    """Checks that an object has all of these keys. Raises UserError for the first that is absent or blank."""
    for key in keys:
        if key not in thing or (isinstance(thing[key], str) and not thing[key].strip()):
            raise UserError(f'{where} has no "{key}", or a blank one. Mend the object or fetch the file again.')


def is_retired(*marks: bool | str | None) -> bool:
    """Returns whether a publisher has withdrawn an entry, by its flags and its status.

    This is the rule for all publishers. A retired entry is not read as a record, and no fact refers to it.
    """
    return any(mark is True or str(mark).lower() in _RETIRED for mark in marks)


def timestamp(thing: dict, key: str, where: str) -> datetime.datetime:
    """Returns the time under a key, in UTC where it names no zone; the earliest time where the key is absent.

    Raises:
      UserError: the value is not an ISO 8601 time; names the place and the key.
    """
    if key not in thing:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    try:
        time = datetime.datetime.fromisoformat(thing[key])
    except ValueError:
        raise UserError(f'{where}: "{key}" is not an ISO 8601 time. Mend it or fetch the file again.') from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _formed(value: Any, form: Any) -> Any:
    """Returns the value in its form. Raises TypeError where it has another one."""
    if isinstance(form, list) and isinstance(value, list):
        return [_formed(item, form[0]) for item in value]
    if isinstance(form, dict) and isinstance(value, dict):
        forms = dict.fromkeys(value, form[ANY_KEY]) if ANY_KEY in form else form
        return {key: _formed(value[key], inner) for key, inner in forms.items() if value.get(key) is not None}
    if isinstance(form, list | dict) or not isinstance(value, form):
        raise TypeError
    return value
