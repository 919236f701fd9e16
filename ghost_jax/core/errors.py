"""How a user's mistake reaches the user: one paragraph on standard error and an exit code, never a traceback.

Anything that the person at the keyboard can put right (a file, a key, a full disk) is raised as `UserError`; a
traceback on the screen therefore always means a defect of ours. Every command of the project is wrapped in
`command`, so that the exit codes are the same everywhere.
"""

import errno
import functools
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence

DONE, FAILED, BAD_USAGE, STOPPED_BY_WATCH = 0, 1, 2, 3


class UserError(Exception):
    """A fault that the user can mend. The message says what is wrong, where, and what to do."""

    exit_code = FAILED


class UsageError(UserError):
    """The command line itself is wrong: an unknown flag, config key or preset."""

    exit_code = BAD_USAGE


def did_you_mean(word: str, known: list[str]) -> str:
    """Returns ` Did you mean "…"?` for the known word nearest to `word`, or the list of what is known."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else f" Known: {', '.join(sorted(known))}."


def say_error(message: str) -> None:
    """Prints one paragraph on standard error, folded at the width of a terminal."""
    paragraph = textwrap.fill(
        "error: " + " ".join(message.split()), width=100, break_long_words=False, break_on_hyphens=False
    )
    print(paragraph, file=sys.stderr, flush=True)


def _interrupt(signum: int, frame) -> None:
    raise KeyboardInterrupt


_IN_THE_WAY = "There is a file where a folder belongs, or a folder where a file does: choose another place."
_ADVICE = {
    errno.EACCES: "Give yourself the right to read and write there, or choose another folder.",
    errno.EROFS: "That file system is read-only; choose another folder with --workdir or XDG_CACHE_HOME.",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EIO: "The disk fails there: copy what can be read to another one, and repeat the command there.",
}

# The system's words, and NumPy's, which drops the system's error: "1028 requested and 606 written"
_NO_SPACE = re.compile(r"No space left|\d+ requested and \d+ written")


def _disk_full(fault: BaseException | None) -> bool:
    while fault is not None:
        if getattr(fault, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE.search(str(fault)):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def _say_disk_full() -> int:
    say_error(
        "The disk is full. Free some space, or point --workdir and XDG_CACHE_HOME at a larger disk, and repeat the "
        "command: it goes on from the last whole checkpoint."
    )
    return FAILED


def command(main: Callable[[Sequence[str]], int | None]) -> Callable[..., int]:
    """Wraps a command's main function: it returns an exit code, and prints a paragraph instead of a traceback.

    The function is given the words of the command line; the wrapped one takes those of the process where it is given
    none, so that `main(["--help"])` works as well.

    Asking a process to stop (SIGTERM) is treated like Ctrl-C, so that every `finally` and context manager runs and
    nothing half-written is left behind.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return main(sys.argv[1:] if argv is None else argv) or DONE
        except UserError as fault:
            say_error(str(fault))
            return fault.exit_code
        except KeyboardInterrupt:
            say_error("Stopped on request. What was finished is kept; repeat the same command to go on from there.")
            return FAILED
        except BrokenPipeError:  # `… | head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it at exit fails once more
            return FAILED
        except OSError as fault:
            if _disk_full(fault):
                return _say_disk_full()
            advice = _ADVICE.get(fault.errno)
            if advice is None:
                raise
            where = f" ({str(fault.filename)[:200]})" if fault.filename else ""
            say_error(f"{fault.strerror}{where}. {advice}")
            return FAILED
        except Exception as fault:
            # Libraries wrap the system's error in one of their own; the cause is in the chain or in the text.
            if _disk_full(fault):
                return _say_disk_full()
            if isinstance(fault, MemoryError) or "RESOURCE_EXHAUSTED" in str(fault):  # NumPy's and JAX's
                said = str(fault).partition("\n")[0][:200]
                say_error(
                    f"The memory is full ({said}). Lower --config.micro_batch_size or --config.data.seq_len, choose a "
                    "smaller model or preset, or split it over more devices with --config.mesh.fsdp."
                )
                return FAILED
            raise

    return wrapped
