"""GHOST_OFFLINE=1 in the environment: no command connects to another machine."""

import os
import re
from urllib.parse import urlsplit

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
