"""Errors that a user can fix end a command with one paragraph and an exit code; a traceback is always a defect."""

import argparse
import difflib
import errno
import functools
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence

from ghost_jax.core.console import escape_controls

DONE, FAILED, BAD_USAGE, STOPPED_BY_WATCH = 0, 1, 2, 3


class UserError(Exception):
    """A fault that the user can fix. The message names what failed, where, and the fix."""

    exit_code = FAILED


class UsageError(UserError):
    """A wrong command line: an unknown flag, config key or preset."""

    exit_code = BAD_USAGE


def did_you_mean(word: str, known: list[str]) -> str:
    """Returns ` Did you mean "…"?` for the known word nearest to `word`, else the list of known words."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else f" Known: {', '.join(sorted(known))}."


_SECRET = re.compile(r"//[^/@\s]*@")  # the user name and password of an address


def say_error(message: str) -> None:
    """Prints one paragraph on standard error."""
    text = _SECRET.sub("//…@", escape_controls("error: " + " ".join(message.split())))
    print(textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False), file=sys.stderr, flush=True)


# System errors of a path that the user chose. Any other one is a defect.
_PATH_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EBUSY, errno.EXDEV, errno.EFBIG),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The system's words, and NumPy's, which drops the system's error: "1028 requested and 606 written"
_NO_SPACE = re.compile(r"No space left|\d+ requested and \d+ written")


def chain_of(fault: BaseException | None) -> Iterator[BaseException]:
    """Yields a fault, its cause, that one's cause, and so on, each once: libraries wrap the system's error."""
    seen = []
    while fault is not None and fault not in seen:  # one that is raised from its own consequence is a circle
        yield fault
        seen.append(fault)
        fault = fault.__cause__ or fault.__context__


def _of_store(fault: BaseException) -> BaseException | None:
    """Returns the fault in a chain that comes from an object store: from its package, or from TensorStore's drivers."""
    for each in chain_of(fault):
        modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(each.__traceback__)}
        of_package = any(name.startswith(("s3fs", "gcsfs")) for name in modules)
        if of_package or re.search(r'"driver":"(s3|gcs)"', str(each).replace("\\", "")):
            return each
    return None


def _paragraph_of(fault: BaseException) -> str | None:
    """Returns the paragraph for a fault that the user can fix, None for a defect."""
    if isinstance(fault, UserError):
        return str(fault)
    if isinstance(fault, KeyboardInterrupt):
        return "Stopped on request. Finished work is kept; repeat the same command to resume."
    if any(getattr(each, "errno", None) in _FULL or _NO_SPACE.search(str(each)) for each in chain_of(fault)):
        return (
            "The disk is full. Free some space, or move the run and its base to a larger disk and name the run there "
            "with --workdir; XDG_CACHE_HOME may name a folder there too. Then repeat the command: it resumes from the "
            "last complete checkpoint."
        )
    if cause := _of_store(fault):
        reason = " ".join(str(cause).partition("[tensorstore_spec")[0].split())[:300]
        return (
            f"The object store cannot be used ({type(cause).__name__}: {reason}). Check the bucket's name, its "
            "permissions, the credentials and the network. Then repeat the command: it resumes from its newest "
            "complete checkpoint."
        )
    if isinstance(fault, OSError) and fault.errno in _PATH_ERRORS:
        place = f" ({str(fault.filename)[:200]})" if fault.filename else ""
        return (
            f"{fault.strerror}{place}. Correct the permissions or the name of that path, or choose another place with "
            "--workdir or XDG_CACHE_HOME."
        )
    if isinstance(fault, MemoryError) or "RESOURCE_EXHAUSTED" in str(fault):  # NumPy's and JAX's
        reason = str(fault).partition("\n")[0][:200]
        return (
            f"The memory is full ({reason}). Lower --batch_size where the command has it. In training lower "
            "--config.micro_batch_size, split the model over more devices with --config.mesh.fsdp, or take a lower "
            "--config.data.seq_len or a smaller preset in another --workdir."
        )
    return None


def command(main: Callable[[Sequence[str]], int | None]) -> Callable[..., int]:
    """Wraps a command's main function: it returns an exit code and prints a paragraph in place of a traceback.

    The wrapped function uses the words of this process's command line unless it is given others. SIGTERM is treated as
    Ctrl-C, so that context managers close.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            code = main(sys.argv[1:] if argv is None else argv) or DONE
            sys.stdout.flush()  # fails here, and not at exit, where the reader of `… | head` has ended
            return code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else closing it at exit fails again
            return FAILED
        except (Exception, KeyboardInterrupt) as fault:
            paragraph = _paragraph_of(fault)
            if paragraph is None:
                raise
            say_error(paragraph)
            return getattr(fault, "exit_code", FAILED)

    return wrapped


NAMES: dict[str, str] = {}  # of commands that were not called by python -m: module -> what the user typed


def parser_of(main: Callable[..., int]) -> argparse.ArgumentParser:
    """Returns the parser of a command, without its flags; its usage line shows what the user typed."""
    spec = sys.modules[main.__module__].__spec__  # None of a file that Python runs by its path
    name = spec and NAMES.get(spec.name, f"python -m {spec.name}")
    return argparse.ArgumentParser(prog=name, description=main.__doc__)


def positive(text: str) -> int:
    """Returns a typed number of 1 or more; the `type=` of every such flag."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number
