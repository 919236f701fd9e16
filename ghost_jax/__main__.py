"""Every command by one name, as installed: `ghost train --config=chat_v5:nano` is `python -m ghost_jax.train …`."""

import importlib
import sys
from collections.abc import Sequence

import ghost_jax
from ghost_jax.core.errors import BAD_USAGE, DONE, NAMES, UsageError, command, did_you_mean

COMMANDS = {
    "train": ("ghost_jax.train", "train a recipe, with its base where it needs one"),
    "eval": ("evals.ctibench", "score a run, an endpoint or the reader on CTIBench or your own questions"),
    "audit": ("evals.audit", "diagnose the answers of any model"),
    "compare": ("evals.compare", "the paired difference of two runs or reports"),
    "chat": ("ghost_jax.chat", "talk to a run"),
    "serve": ("ghost_jax.serve", "serve a run or the reader over the OpenAI API, with a page"),
    "export": ("ghost_jax.export", "write a run for transformers, llama.cpp or peft"),
    "import": ("ghost_jax.import_model", "make a base run of a Llama or Qwen 2 checkpoint"),
    "report": ("ghost_jax.report", "tables and pictures of runs"),
    "sweep": ("ghost_jax.sweep", "settings x seeds"),
    "fetch": ("ghost_jax.data.fetch", "download published sources"),
    "prepare": ("ghost_jax.data.prepare", "make the data of a recipe"),
    "show": ("ghost_jax.data.show", "print records of a dataset, and what is learnt of them"),
}


@command
def main(words: Sequence[str]) -> int:
    """Runs the command that the first word names with the words behind it; returns its exit code."""
    if list(words[:1]) == ["--version"]:
        print(ghost_jax.__version__)
        return DONE
    if not words or words[0] in ("-h", "--help"):
        print("usage: ghost COMMAND [--help] …\n")
        for name, (_, does) in COMMANDS.items():
            print(f"  {name:8}  {does}")
        return DONE if words else BAD_USAGE
    if words[0] not in COMMANDS:
        raise UsageError(f"ghost has no command {words[0]}.{did_you_mean(words[0], list(COMMANDS))}")
    module, _ = COMMANDS[words[0]]
    NAMES[module] = f"ghost {words[0]}"
    return importlib.import_module(module).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
