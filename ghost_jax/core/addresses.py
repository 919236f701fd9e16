"""Addresses of other machines: which are valid, and which GHOST_OFFLINE=1 in the environment forbids."""

import os
import re
from urllib.parse import urlsplit

from ghost_jax.core.errors import UsageError

_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


def is_offline() -> bool:
    """Returns whether connections to other machines are forbidden."""
    return os.environ.get("GHOST_OFFLINE") == "1"


def forbids(address: str) -> bool:
    """Returns whether a URL, or "HOST:PORT", may not be connected to: it is not on this machine."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    return is_offline() and not _LOOPBACK.fullmatch(host)


def avoid_proxies() -> None:
    """Offline, makes this process use no proxy: it is another machine and would get what is sent to this one."""
    if is_offline():
        os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}


def host_of(base_url: str, setting: str, key_variable: str, otherwise: str = "") -> str:
    """Returns the host of an API's base URL, the value of `setting`.

    Raises UsageError where it is not a URL, or holds what may be secret (no message repeats it); `key_variable` is
    where a key belongs, and `otherwise` names another value that the setting may have.
    """
    if set("@?#") & set(base_url):
        raise UsageError(
            f"{setting} holds a user name, password or query, which records and messages would show. Give the "
            f"bare base URL, such as http://localhost:11434/v1, and a key in {key_variable}."
        )
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        valid = parts.scheme in ("http", "https") and host.encode("idna") and parts.port != 0
    except ValueError:
        valid = False
    if not (valid and re.fullmatch(r"[!-~]+", base_url)):
        raise UsageError(f'{setting} is "{base_url}". Give a base URL such as http://localhost:11434/v1{otherwise}.')
    return host
