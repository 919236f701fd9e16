"""Exports a run for Hugging Face transformers or llama.cpp: `python -m ghost_jax.export --workdir=runs/NAME --out=DIR`.

A v0.5 model becomes a `LlamaForCausalLM`, a v0.4 one a `GPT2LMHeadModel`, without the padding rows of the embedding. In
transformers a text that spells a role token becomes that token; our own commands read it as text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

import ghost_jax
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import is_free, new_folder, read_json, write_json, write_text
from ghost_jax.core.errors import UsageError, UserError, command, parser_of
from ghost_jax.core.object_store import path_of
from ghost_jax.core.paths import local_path
from ghost_jax.hub import card, gguf, gpt2, llama, peft, vocabulary, weights
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_record
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.loading import load_adapted, load_model

FORMATS = {"v05": llama, "v04": gpt2}
DTYPES = {"hf": ("float32", "bfloat16"), "gguf": gguf.DTYPES, "peft": ("float32", "bfloat16")}


def write_model(folder: Path, workdir: Path, dtype: str, kind: str = "hf") -> str:
    """Writes weights, configs and vocabulary of a run's newest checkpoint; returns a description.

    Args:
      kind: "hf"; "gguf"; or "peft", adapters on a base that is written beside them.

    Raises UserError where the run is absent or unfinished, or has no form of this kind.
    """
    if kind == "peft":
        model, params, adapters, step = load_adapted(workdir, make_mesh())
    else:
        model, params, step = load_model(workdir, make_mesh())
    if not (run_record.is_finished(workdir) or run_record.stopped(workdir)):
        raise UserError(f"The run in {workdir} is not finished. Repeat its train command: it resumes.")
    form = FORMATS[model.generation]
    if kind != "hf" and form is not llama:
        raise UserError(f"{workdir} is a v0.4 model, and --format={kind} is written of v0.5. Leave --format out.")
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    spelled, name = read_json(workdir / "tokenizer.json"), workdir.resolve().name
    files = vocabulary.files_of(spelled, tokenizer, model.context)
    config = {
        **form.config_of(model),
        **vocabulary.special_ids(tokenizer),
        "torch_dtype": dtype,
        "ghost_jax": {"version": ghost_jax.__version__, "run": name, "step": step, "format": kind},
    }
    if kind == "gguf":  # the file holds its vocabulary
        size = gguf.write(folder, params, model, tokenizer, spelled, dtype, name)
    else:
        whole = folder / peft.BASE if kind == "peft" else folder
        whole.mkdir(exist_ok=True)
        size = weights.write(whole, form.tensors_of(params, model), jnp.dtype(dtype))
        for file, content in files.items():
            write_json(whole / file, content)
    if kind == "peft":
        write_json(whole / "config.json", config)
        size = peft.write(folder, *adapters)
    write_json(folder / "config.json", config)  # last: nothing loads without it
    chat = "with" if tokenizer.template else "without"
    return f"{form.ARCHITECTURE}, {model.parameters():,} parameters, {dtype}, {size:,} bytes, {chat} a chat template"


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line. Raises UsageError for a type that the format has not."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--workdir", type=path_of, required=True, metavar="DIR", help="the run, e.g. runs/chat_v5-nano")
    add("--out", type=local_path, required=True, metavar="DIR", help="the folder, new or empty")
    formats = "hf for transformers (default), gguf for llama.cpp, peft for the adapters alone"
    add("--format", choices=DTYPES, default="hf", help=formats)
    add("--dtype", default="float32", help="float32 (default) or bfloat16; with gguf also float16 or q8_0")
    flags = parser.parse_args(argv)
    if flags.dtype not in DTYPES[flags.format]:
        raise UsageError(
            f"--dtype={flags.dtype} is not one of {', '.join(DTYPES[flags.format])}, as --format={flags.format} has. "
            "float16 and q8_0 need --format=gguf."
        )
    return flags


@command
def main(argv: Sequence[str]) -> int:
    """Exports a finished run as a folder that Hugging Face transformers loads, with its model card."""
    flags = parse_flags(argv)
    out = flags.out.resolve()
    if not is_free(out):
        raise UserError(f"{out} is not an empty folder, and no file is replaced. Remove it, or choose another --out.")
    run = card.read_records(flags.workdir)
    jax_setup.set_up()
    with new_folder(out) as folder:
        description = write_model(folder, flags.workdir, flags.dtype, flags.format)
        exported = read_json(folder / "config.json")
        write_text(folder / card.FILE, card.card_of(run, exported))
    print(f"{flags.out}: {description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
