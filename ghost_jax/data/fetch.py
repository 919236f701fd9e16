"""Downloads published sources to the data folder: `python -m ghost_jax.data.fetch --sources=attack,capec`.

`ghost_jax/data/downloads/published.toml` is the table of sources, addresses and hashes. A verified file is not
downloaded again, nor is a feed that its kept note verifies: delete it to get today's. Without a connection, or with
GHOST_OFFLINE=1 in the environment, the command lists which file to put where.
"""

import dataclasses
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ghost_jax.core.addresses import host_of, is_offline
from ghost_jax.core.errors import UsageError, UserError, command, did_you_mean, parser_of
from ghost_jax.core.paths import cache_dir, local_path
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.download import Unavailable
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED, File
from ghost_jax.data.storage import files

OFFLINE_SECONDS = 4.0  # in all, for one of the publishers to answer
MAX_NOTE = 1 << 16  # bytes
MAX_FEED = 2 << 30  # bytes that a note may state; a year is a quarter of a gigabyte


def bring(
    names: Sequence[str], folder: Path, say: Callable[[str], None], *, mirror: str | None = None
) -> dict[str, str]:
    """Downloads what is missing of some sources. Being offline is detected once, in about 4 s, and raises nothing.

    Args:
      folder: the data folder, created if needed. Its files are read to verify them.
      say: receives a line for each event.
      mirror: an http address that replaces the scheme and the host of every publisher.

    Returns:
      source -> why it could not be downloaded, or is not what would be read. Empty where everything is verified.
    """
    reasons = {name: UNPUBLISHED.get(name, "no publisher is known") for name in names if name not in PUBLISHED}
    wanted = {name: files for name in names if name in PUBLISHED and (files := missing(name, folder))}
    if offline := _why_offline(_address(file.url, mirror) for lacking in wanted.values() for file in lacking):
        reasons |= dict.fromkeys(wanted, offline)
        wanted = {}
    with download.session() as http:
        for name, lacking in wanted.items():
            say(f"{name}: {PUBLISHED[name].license}")
            try:
                for file in lacking:
                    _bring_file(http, file, folder, say, mirror)
            except Unavailable as fault:
                reasons[name] = str(fault)
    for name in [name for name in names if name not in reasons]:
        for other in filter(None, (_in_place_of(file, folder) for file in PUBLISHED[name].files)):
            reasons[name] = f"{other} is read in place of the publisher's file and has another content: delete it"
    return reasons


def in_words(reasons: dict[str, str]) -> str:
    """Returns source -> reason as a list, sources of one reason together."""
    sharing: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        sharing.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in sharing.items())


def missing(name: str, folder: Path) -> list[File]:
    """Returns the files of a published source that a data folder lacks or has with another content."""
    return [file for file in PUBLISHED[name].files if not _is_there(file, folder)]


def _is_there(file: File, folder: Path) -> bool:
    try:
        return download.is_verified(folder / file.path, _known(file, folder))
    except (OSError, ValueError):
        return False  # a feed without its note


def _known(file: File, folder: Path) -> File:
    return file if file.digest else read_note(file, (folder / file.note.path).read_bytes())


def _in_place_of(file: File, folder: Path) -> Path | None:
    """Returns the file that is read in place of a verified one, in another folder or compression, if it is another."""
    place = folder / file.path
    found = files.find(folder, files.stem(place.name)) if place.parent.name in files.FOLDERS else []
    known = _known(file, folder)
    return next((path for path in found if download.digest_of(path, known, path.suffix) != known.digest), None)


def read_note(feed: File, note: bytes) -> File:
    """Returns a feed with the hash and size that its note states in lines of `key:value`.

    Raises ValueError for another note. A size over `MAX_FEED` is refused: it would let a server send as much.
    """
    fields = dict(line.split(":", 1) for line in note.decode("utf-8-sig").splitlines() if ":" in line)
    digest, size = fields.get("sha256", "").strip().lower(), int(fields.get("size", -1))
    if len(digest) != 64 or not 0 <= size <= MAX_FEED:
        raise ValueError("it states no SHA-256 or no possible size")
    return dataclasses.replace(feed, digest=digest, size=size)


def _bring_file(
    http: requests.Session, file: File, folder: Path, say: Callable[[str], None], mirror: str | None
) -> None:
    place, known, note = folder / file.path, file, None
    if not file.digest:
        note_url, received = _address(file.note.url, mirror), io.BytesIO()
        download.transfer(http, note_url, received, MAX_NOTE)
        note = folder / file.note.path, received.getvalue()
        try:
            known = read_note(file, note[1])
        except ValueError as fault:
            raise Unavailable(f"{download.shown(note_url)} is not the note of a feed ({fault})") from fault
    if place.exists() and not download.is_verified(place, known):
        say(f"{place} is not the publisher's file: replacing it when the download is verified")
    download.download(http, _address(file.url, mirror), place, known, note)


def _address(url: str, mirror: str | None) -> str:
    return url if mirror is None else mirror.rstrip("/") + urlsplit(url).path


def _why_offline(addresses: Iterable[str]) -> str:
    """Returns why no host can be reached, "" as soon as one of them answers."""
    hosts = {download.host_of(address): address for address in addresses}
    if hosts and is_offline():
        return "GHOST_OFFLINE=1 forbids connections"
    reasons = []
    for host, address in hosts.items():
        try:
            requests.head(address, timeout=OFFLINE_SECONDS / len(hosts), allow_redirects=False)
            return ""
        except requests.RequestException as fault:
            reasons.append(f"{host}: {download.reason_of(fault)}")
    return "; ".join(reasons)


def _say(line: str) -> None:
    print(f"[fetch] {line}", flush=True)


@command
def main(argv: Sequence[str]) -> int:
    """Downloads sources from their publishers: resumed, verified, and renamed when complete."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--sources", required=True, metavar="NAME,…", help=f"which: {','.join(PUBLISHED)}")
    add("--data_dir", type=local_path, metavar="DIR", help="where to (default: the user's cache)")
    add("--mirror", metavar="URL", help="a site's own copy, with the publishers' paths, in place of their hosts")
    flags = parser.parse_args(argv)
    names = [name.strip() for name in flags.sources.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--sources is empty. Name some of {','.join(PUBLISHED)}; a shell variable may not be set.")
    for name in names:
        if name in UNPUBLISHED:
            raise UsageError(f"--sources names {name}, which has no single publisher: {UNPUBLISHED[name]}.")
        if name not in PUBLISHED:
            raise UsageError(f"--sources names {name}, which is unknown.{did_you_mean(name, list(PUBLISHED))}")
    if flags.mirror is not None:
        host_of(flags.mirror, "--mirror", "~/.netrc")
    folder = flags.data_dir or cache_dir() / "data"
    reasons = bring(names, folder, _say, mirror=flags.mirror)
    for name in names:
        if name not in reasons:
            _say(f"{name}: complete and verified in {folder}")
    if not reasons:
        return 0
    if lacking := [file for name in reasons for file in missing(name, folder)]:
        _say("put these in their places, and repeat the command to verify them:")
    for file in lacking:
        for thing in (file,) if file.digest else (file.note, file):
            _say(f"  {thing.url} as {folder / thing.path}")
    raise UserError(
        f"Not fetched: {in_words(reasons)}. Repeat the command when there is a connection, give --mirror a site's own "
        "copy, or put the files listed above in their places by hand."
    )


if __name__ == "__main__":
    sys.exit(main())
