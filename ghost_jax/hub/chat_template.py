"""The chat template of an imported vocabulary: what it puts between the contents of two roles.

The ids are read once, at import, from conversations rendered as transformers renders them, and
`ghost_jax.text.chat_format` needs no more. There is no clock: stores and scores must not depend on the day, so a
template takes its default date.
"""

import contextlib
import re
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ghost_jax.core.atomic_io import read_text
from ghost_jax.runs.run_dir import say
from ghost_jax.text.tokenizer import Template

SECONDS, MEMORY = 10.0, 1 << 30  # that a template may take; bytes
SYSTEM = ("system", "\nBe brief. ")
TURNS = [("user", " 1 + 1?\n"), ("assistant", "It is 2. "), ("user", "\n\n  Naïve\t{{ x }}"), ("assistant", "x:\n y")]


def read_template(folder: Path, settings: Mapping, names: Mapping, backend: tokenizers.Tokenizer) -> Template | None:
    """Returns the chat template of a checkpoint made elsewhere; None, and a note, where it has none that can be used.

    `settings` is its tokenizer_config.json; `names` are its special tokens, as `bos_token`.
    """
    text = template_text(folder, settings)
    try:
        with _limited():
            return _parts(text, names, backend) if text else None
    except (ValueError, TimeoutError, MemoryError) as why:
        say(f"The chat template in {folder} is not used: {why}. Chat recipes will add role tokens of their own.")


def template_text(folder: Path, settings: Mapping) -> str:
    """Returns the text of a checkpoint's chat template, of its own file first; "" where there is none."""
    file, text = folder / "chat_template.jinja", settings.get("chat_template")
    if isinstance(text, list):  # several, each with a name
        text = next((each["template"] for each in text if each["name"] == "default"), None)
    return read_text(file) if file.is_file() else text or ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raises TimeoutError in a block that takes over SECONDS, and MemoryError, on Linux, in one that takes over MEMORY.

    The sandbox bounds neither.
    """

    def stop(*_) -> None:
        raise TimeoutError(f"it takes over {SECONDS:g} s")

    size, (soft, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if size.is_file():
        used = int(size.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        if soft == resource.RLIM_INFINITY or used + MEMORY < soft:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _parts(text: str, names: Mapping, backend: tokenizers.Tokenizer) -> Template:
    """Raises ValueError where what stands between two contents depends on more than their roles."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    def refuse(message: str) -> None:
        raise ValueError(message)

    def show(turns: list[tuple[str, str]], then: str = "") -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        given = {"messages": messages, "tools": None, "documents": None, "raise_exception": refuse}
        try:
            return jinja.from_string(text).render(**given, **names, add_generation_prompt=bool(then))
        except Exception as fault:  # a template may raise anything
            raise ValueError(f"it cannot be rendered ({fault!r})") from None

    strips = TURNS[0][1] not in show(TURNS[:1])

    def between(first: list[tuple[str, str]], found: dict[str, str]) -> dict[str, str]:
        for count, then in ((1, ""), (1, "assistant"), (2, ""), (3, "assistant"), (4, "")):
            said = [*first, *TURNS[:count]]
            contents = [content.strip() if strips else content for _, content in said]
            pattern, shown = "|".join(map(re.escape, contents)), show(said, then)
            if re.findall(pattern, shown) != contents:
                raise ValueError("it does not show every content once, in order and unchanged")
            roles = ["", *(role for role, _ in said), then]
            for one, two, part in zip(roles, roles[1:], re.split(pattern, shown), strict=False):
                if found.setdefault(f"{one} {two}", part) != part:
                    raise ValueError(f"what stands between {one!r} and {two!r} depends on other turns")
        return found

    found = between([], {})
    with contextlib.suppress(ValueError):  # without a system role, or with another place for it
        found = between([SYSTEM], dict(found))
    special = [token for token in backend.get_added_tokens_decoder().values() if token.special]
    marks = re.compile("|".join(re.escape(token.content) for token in special))
    if not all(map(marks.match, found.values())):
        raise ValueError("a turn begins or ends without a special token")
    if any(token.content in "".join(found.values()) for token in special if token.lstrip or token.rstrip):
        raise ValueError("a special token takes the white space beside it away")
    parts = {}
    for roles, part in found.items():
        rest = marks.split(part)[-1] if roles.endswith(("user", "system")) else ""
        parts[roles] = backend.encode(part.removesuffix(rest), add_special_tokens=False).ids, rest
    return Template(text, parts, strips)
