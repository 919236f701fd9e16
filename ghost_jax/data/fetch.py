"""Brings published sources to the data folder: `python -m ghost_jax.data.fetch --sources=attack,capec`.

`ghost_jax/data/downloads/published.py` is the table of what can be had, from where, and how it is proven. A file that
is there and proven is not fetched again, nor is a living feed that its kept note proves: delete it to have today's.
Without a connection, or with GHOST_OFFLINE=1 in the environment, the command says what to put where.
"""

import argparse
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ghost_jax.core.atomic_io import write_bytes
from ghost_jax.core.errors import UsageError, UserError, command, did_you_mean
from ghost_jax.core.paths import cache_dir, local_path
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.download import Unavailable
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED, Feed, File, GitBlob, Sha256

OFFLINE_SECONDS = 4.0  # the publishers have so long to give a sign of life
MOST_OF_A_NOTE = 1 << 16  # bytes
MOST_OF_A_FEED = 2 << 30  # bytes that a note may state; a year is a quarter of a gigabyte


def bring(
    names: Sequence[str], folder: Path, say: Callable[[str], None], *, mirror: str | None = None
) -> dict[str, str]:
    """Fetches what is missing of some sources. Being offline is no error; it is noticed once, within 5 s.

    Files that are there are read to prove them, so a caller in a hurry names only the sources that it lacks.

    Args:
      folder: the data folder, which is made where needed.
      say: is told, in one line each, what happens.
      mirror: an http address that stands for the scheme and the host of every publisher.

    Returns:
      source -> why it could not be had, in a few words. Empty where everything is there and proven.
    """
    reasons = {name: UNPUBLISHED.get(name, "no publisher is named") for name in names if name not in PUBLISHED}
    wanted = {name: files for name in names if name in PUBLISHED and (files := missing(name, folder))}
    addresses = [_address(file.url, mirror) for files in wanted.values() for file in files]
    if offline := _why_offline(addresses):
        return reasons | dict.fromkeys(wanted, offline)
    with download.session() as http:
        for name, files in wanted.items():
            say(f"{name}: {PUBLISHED[name].license}")
            try:
                for file in files:
                    _bring_file(http, file, folder, say, mirror)
            except Unavailable as fault:
                reasons[name] = str(fault)
    return reasons


def missing(name: str, folder: Path) -> list[File]:
    """Returns the files of a published source that are not in a data folder, or there with another content."""
    return [
        file
        for file in PUBLISHED[name].files
        if (proof := _known_proof(file, folder)) is None or not download.is_whole(folder / file.path, proof)
    ]


def _known_proof(file: File, folder: Path) -> Sha256 | GitBlob | None:
    if not isinstance(file.proof, Feed):
        return file.proof
    try:
        return read_note((folder / file.proof.path).read_bytes())
    except (OSError, ValueError):
        return None


def read_note(note: bytes) -> Sha256:
    """Returns the proof that a feed's note states in lines of `key:value`. Raises ValueError where it states none.

    A size that no feed has is none: it would let a server send as much.
    """
    fields = dict(line.split(":", 1) for line in note.decode("utf-8-sig").splitlines() if ":" in line)
    if not {"sha256", "size"} <= fields.keys():
        raise ValueError("no sha256 and size in it")
    size = int(fields["size"])
    if not 0 <= size <= MOST_OF_A_FEED:
        raise ValueError("it states a size that no feed has")
    return Sha256(fields["sha256"].strip().lower(), size)


def _bring_file(
    http: requests.Session, file: File, folder: Path, say: Callable[[str], None], mirror: str | None
) -> None:
    place = folder / file.path
    if place.exists():
        say(f"{place} is not what its publisher has: it is replaced once the right one is whole")
    fetch = functools.partial(download.download, http, _address(file.url, mirror), place, say=say)
    if isinstance(file.proof, Feed):
        url = _address(file.proof.url, mirror)
        note = download.read(http, url, MOST_OF_A_NOTE)
        try:
            proof = read_note(note)
        except ValueError as fault:
            raise Unavailable(f"{download.shown(url)} is no note of a feed ({fault})") from fault
        fetch(proof=proof, before_rename=lambda: write_bytes(folder / file.proof.path, note))
    else:
        fetch(proof=file.proof)


def _address(url: str, mirror: str | None) -> str:
    return url if mirror is None else mirror.rstrip("/") + urlsplit(url).path


def _why_offline(addresses: Iterable[str]) -> str | None:
    """Returns why none of the hosts can be reached, or None as soon as one of them answers anything at all."""
    hosts = {download.host_of(address): address for address in addresses}
    if hosts and os.environ.get("GHOST_OFFLINE") == "1":
        return "GHOST_OFFLINE=1 forbids connections"
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    deadline = time.monotonic() + OFFLINE_SECONDS
    for address in hosts.values():
        # As daemons, because the search for a name cannot be given a time limit and must not delay the end.
        threading.Thread(target=lambda address=address: answers.put(_why_silent(address)), daemon=True).start()
    reasons = []
    for _ in hosts:
        try:
            reason = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            reasons.append(f"no answer within {OFFLINE_SECONDS:.0f} s")
            break
        if reason is None:
            return None
        reasons.append(reason)
    return "; ".join(reasons) or None


def _why_silent(address: str) -> str | None:
    try:
        requests.head(address, timeout=OFFLINE_SECONDS, allow_redirects=False)  # an answer without a content
    except requests.RequestException as fault:
        return f"{download.host_of(address)} {download.in_few_words(fault)}"
    return None


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in UNPUBLISHED:
            raise UsageError(f"The source {name} has no single publisher to fetch it from: {UNPUBLISHED[name]}.")
        if name not in PUBLISHED:
            raise UsageError(f"--sources names {name}, which nobody publishes.{did_you_mean(name, list(PUBLISHED))}")


def _check_mirror(mirror: str) -> None:
    if set("@?#") & set(mirror):
        raise UsageError(
            "--mirror holds a user name, password or query, which messages and other users of this machine would see. "
            "Give the bare address, such as http://mirror.example:8080; a password for it can stand in ~/.netrc."
        )
    try:
        parts = urlsplit(mirror)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise UsageError(f"--mirror={mirror} is no web address: begin it with http:// or https:// and a host.")


def _say(line: str) -> None:
    print(f"[fetch] {line}", flush=True)


@command
def main(argv: Sequence[str]) -> int:
    """Fetches sources from their publishers: resumed where it broke off, proven, and renamed only when whole."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.data.fetch", description=main.__doc__)
    parser.add_argument("--sources", required=True, metavar="NAME,…", help=f"which: {','.join(PUBLISHED)}")
    parser.add_argument("--data_dir", type=local_path, metavar="DIR", help="where to (default: the user's cache)")
    parser.add_argument(
        "--mirror", metavar="URL", help="a site's own copy, with the publishers' paths, in place of their hosts"
    )
    flags = parser.parse_args(argv)
    names = [name.strip() for name in flags.sources.split(",") if name.strip()]
    _check_names(names)
    if flags.mirror is not None:
        _check_mirror(flags.mirror)
    folder = flags.data_dir or cache_dir() / "data"
    reasons = bring(names, folder, _say, mirror=flags.mirror)
    for name in names:
        if name not in reasons:
            _say(f"{name}: whole and proven in {folder}")
    if not reasons:
        return 0
    _say("put these in their places, and repeat the command to have them proven:")
    for name in reasons:
        for file in missing(name, folder):
            note = [file.proof] if isinstance(file.proof, Feed) else []
            for thing in (*note, file):
                _say(f"  {thing.url} as {folder / thing.path}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    told = " ".join(f"{', '.join(names)}: {reason}." for reason, names in by_reason.items())
    raise UserError(
        f"Not everything could be fetched. {told} What was finished is kept. Repeat the command when there is a "
        "connection, or name a site's own copy with --mirror, or put the files in the places listed above by hand."
    )


if __name__ == "__main__":
    sys.exit(main())
