"""How a typed fact is asked for: eight questions a relation, in `questions.toml`."""

import tomllib
from pathlib import Path

VERSION = 1  # raise it when a question changes

_TEXT = Path(__file__).with_name("questions.toml").read_text(encoding="utf-8")
# relation -> its questions; {subject} is the fact's subject
QUESTIONS: dict[str, tuple[str, ...]] = {relation: tuple(forms) for relation, forms in tomllib.loads(_TEXT).items()}
