"""A run as a folder that Hugging Face transformers loads: `python -m ghost_jax.export --workdir=runs/NAME --out=DIR`.

A v0.5 model becomes a `LlamaForCausalLM`, a v0.4 one a `GPT2LMHeadModel`. The embedding's padding rows stay behind.
There, a text that spells a role token becomes that token; our own commands read it as text. The model card beside the
weights is written from the run's records (`ghost_jax/hub/card.py`), and `--push_to` uploads the folder.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

import ghost_jax
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import new_folder, read_json, write_json, write_text
from ghost_jax.core.errors import UsageError, UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.hub import card, gpt2, llama, upload, vocabulary, weights
from ghost_jax.hub.channel import CANONICAL, CHANNELS, EXPERIMENTAL, Channel, decide
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_record
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.checkpoint import load_model

FORMATS = {"v05": llama, "v04": gpt2}
# The names of what an export writes.
EXPORTED = re.compile(r".*\.safetensors(\.index\.json)?|(\w+_)?config\.json|tokenizer\.json|README\.md")
DTYPES = ("float32", "bfloat16")
UNITS = {"MB": 10**6, "GB": 10**9}


def write_model(folder: Path, workdir: Path, dtype: str, shard_bytes: int) -> str:
    """Writes weights, configs and vocabulary of a run's newest checkpoint into a folder; returns in words what.

    `config.json`, without which nothing loads, is written last. It says which run the model is.

    Raises UserError where the run is absent or unfinished.
    """
    model, params, step = load_model(workdir, make_mesh())
    if not (run_record.is_finished(workdir) or run_record.stopped(workdir)):
        raise UserError(f"The run in {workdir} is not finished. Repeat its train command: it goes on from there.")
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    form = FORMATS[model.generation]
    size = weights.write(folder, form.tensors_of(params, model), jnp.dtype(dtype), shard_bytes)
    described = vocabulary.files_of(read_json(workdir / "tokenizer.json"), tokenizer, model.context)
    described["config.json"] = {
        **form.config_of(model),
        **vocabulary.special_ids(tokenizer),
        "torch_dtype": dtype,
        "ghost_jax": {"version": ghost_jax.__version__, "run": workdir.resolve().name, "step": step},
    }
    for name, content in described.items():
        write_json(folder / name, content)
    chat = "with" if "chat_template" in described["tokenizer_config.json"] else "without"
    return f"{form.ARCHITECTURE}, {model.parameters():,} parameters, {dtype}, {size:,} bytes, {chat} a chat template"


def write_card(folder: Path, run: dict, channel: Channel, present: dict | None) -> None:
    """Writes the model card beside the weights that `write_model` left in a folder."""
    exported = read_json(folder / "config.json")
    write_text(folder / card.FILE, card.card_of(run, exported, channel, present))


def check_out(out: Path, force: bool) -> None:
    """Raises UserError where something stands at `out` that may not be replaced: with `force`, all but an export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file() or "ghost_jax" not in read_json(out / "config.json"):
        raise UserError(f"{out} holds something that is no export of ours. Choose another --out.")
    strangers = sorted(path.name for path in out.iterdir() if not EXPORTED.fullmatch(path.name))
    if strangers:
        raise UserError(
            f"{out} holds an export, and beside it {', '.join(strangers)}, which a new one would take away. Choose "
            "another --out, or move them."
        )
    if not force:
        raise UserError(f"{out} holds an export already. Give --force to replace it, or choose another --out.")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([1-9]\d*)(MB|GB)", text)
    if not found:
        raise UsageError(f"--shard_size={text} is no size. Write megabytes or gigabytes: 500MB, 5GB.")
    return int(found[1]) * UNITS[found[2]]


def check_flags(flags: argparse.Namespace) -> None:
    """Raises UsageError where flags contradict each other, and UserError where nothing can be uploaded."""
    if flags.dry_run and not flags.push_to:
        raise UsageError("--dry_run shows what an upload would send: add --push_to=OWNER/NAME.")
    if flags.push_to:
        upload.check_name(flags.push_to)
        if not flags.dry_run:
            upload.check_reachable()  # before minutes of export


@command
def main(argv: Sequence[str]) -> int:
    """Exports a finished run as a folder that Hugging Face transformers loads, with its model card."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.export", description=main.__doc__)
    parser.add_argument(
        "--workdir", type=local_path, required=True, metavar="DIR", help="the run, e.g. runs/chat_v5-nano"
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    parser.add_argument("--shard_size", default="5GB", metavar="SIZE", help="most of a file of weights (default: 5GB)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--channel",
        choices=CHANNELS,
        default=EXPERIMENTAL,
        help="canonical only where it is shown to be above --present, else experimental (default: experimental)",
    )
    parser.add_argument("--present", type=local_path, metavar="DIR", help="the present canonical run, to compare with")
    parser.add_argument(
        "--items", type=local_path, metavar="FILE", help="the questions of that comparison, as evals.compare"
    )
    parser.add_argument(
        "--push_to",
        metavar="OWNER/NAME",
        help="upload the folder to the hub that HF_ENDPOINT names, where a new repository is public by default",
    )
    parser.add_argument("--dry_run", action="store_true", help="show what --push_to would send, and send nothing")
    flags = parser.parse_args(argv)
    shard_bytes, out = _bytes(flags.shard_size), flags.out.resolve()
    check_flags(flags)
    check_out(out, flags.force)
    run = card.read_records(flags.workdir)
    channel = decide(flags.channel, flags.workdir, flags.present, flags.items)
    present = card.read_records(flags.present) if flags.present else None
    jax_setup.set_up()
    with new_folder(out) as folder:
        written = write_model(folder, flags.workdir, flags.dtype, shard_bytes)
        write_card(folder, run, channel, present)
    print(f"{flags.out}: {written}")
    print(f"{channel.name}: {channel.reason}")
    if flags.push_to:
        for name, size in upload.files_of(out):
            print(f"{size:>15,}  {name}")
        if flags.dry_run:
            print(f"Nothing was uploaded to {flags.push_to}. A new repository is public where the hub's default is.")
        else:
            address = upload.push(out, flags.push_to, tag=channel.name, keeps=CANONICAL, above=channel.above)
            print(f"uploaded to {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
