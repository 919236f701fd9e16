"""Prints records of a run's first epoch: `python -m ghost_jax.data.show --config=configs/chat_v5.py:nano -n 3`.

Supervised tokens are green on a terminal and in ⟦brackets⟧ elsewhere. Tokens that are cropped are struck out.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ghost_jax.config import load as config_lib
from ghost_jax.core.console import escape_controls, make_console
from ghost_jax.core.errors import command, parser_of, positive
from ghost_jax.data import mixture
from ghost_jax.data.prepare import prepare
from ghost_jax.text.tokenizer import Tokenizer

SUPERVISED, CROPPED = "bold green", "strike dim"


def drawn(example: dict, tokenizer: Tokenizer, seq_len: int, coloured: bool) -> Text:
    """Returns the tokens of an example with their mask, separated by thin bars."""
    cropped = max(0, len(example["tokens"]) - (seq_len + 1))
    text, inside = Text(), False
    for place, (token, supervised) in enumerate(zip(example["tokens"], example["mask"], strict=True)):
        if not coloured and supervised != inside:
            text.append("⟦" if supervised else "⟧")
        elif place:
            text.append("│", style="dim")
        inside = bool(supervised)
        shown = escape_controls(tokenizer.decode([int(token)])).replace("\n", "⏎\n")
        text.append(shown, style=CROPPED if place < cropped else SUPERVISED if supervised else "")
    if not coloured and inside:
        text.append("⟧")
    return text


def show(example: dict, name: str, tokenizer: Tokenizer, seq_len: int, console: Console) -> None:
    """Prints one example under its name, id, source and counts."""
    letter = example["letter"].decode()
    about = f"{name}  {example['id'].decode()}  from {example['source'].decode()}"
    counts = f"{len(example['tokens'])} tokens, {int(example['mask'].sum())} learnt"
    console.rule(Text(escape_controls(about), "bold"), align="left")
    console.print(f"{counts}{f', gold letter {letter}' if letter else ''}", style="dim", highlight=False)
    console.print(drawn(example, tokenizer, seq_len, console.is_terminal), soft_wrap=True)


@command
def main(argv: Sequence[str]) -> int:
    """Prints records of a run's first epoch, with the supervised tokens marked."""
    parser = parser_of(main)
    parser.add_argument("-n", type=positive, default=3, metavar="N", help="records (default: 3)")
    config, flags = config_lib.parse(parser, argv)
    prepared = prepare(config, flags.data_dir)
    console = make_console()
    for name, example in mixture.first_examples(prepared.mix, flags.n):
        show(example, name, prepared.tokenizer, config.data.seq_len, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
