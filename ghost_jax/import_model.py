"""Imports a Llama or Qwen 2 as a base run: `python -m ghost_jax.import_model --from=DIR --workdir=runs/NAME`.

DIR holds what transformers loads as a `LlamaForCausalLM` or `Qwen2ForCausalLM`: config.json, safetensors and
tokenizer.json. The run is finished with 0 updates: chat recipes start from it, and evaluations score it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import is_free, new_folder, read_text, write_json
from ghost_jax.core.errors import UserError, command, parser_of
from ghost_jax.core.paths import local_path
from ghost_jax.data.storage import artifact_cache
from ghost_jax.hub import llama, vocabulary
from ghost_jax.hub.weights import Weights
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_dir, run_record
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import Checkpoints, check_place, identity_of
from ghost_jax.training.step import new_state

COMPUTED = ".rotary_emb.inv_freq"  # buffers of older checkpoints, which config.json determines


def read_model(folder: Path) -> tuple[ModelConfig, dict, Tokenizer, list[Path]]:
    """Returns shape, float32 parameters, vocabulary and weight files of the checkpoint in a folder.

    Raises UserError where it is not a complete Llama that our model can compute.
    """
    try:
        config = json.loads(read_text(folder / "config.json"))
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(
            f"{folder} holds no checkpoint ({fault}). Name a folder with config.json, tokenizer.json and safetensors."
        ) from None
    model = llama.model_of(config)
    weights = Weights(folder)
    # A parameter has two bytes. Else a size that only config.json has would fill the memory before a tensor is read.
    if (size := sum(path.stat().st_size for path in weights.files)) < model.parameters():
        raise UserError(
            f"By its config.json the checkpoint in {folder} has {model.parameters():,} parameters, and its safetensors "
            f"have {size:,} bytes, which hold fewer. Fetch the checkpoint again."
        )
    tokenizer = vocabulary.read_vocabulary(folder, model.vocab_size)
    params = llama.params_of(weights, model, output_bias=config["model_type"] != llama.QWEN)
    if llama.HEAD in weights.unread:  # transformers 4 would use the embedding in its place, transformers 5 this head
        head = weights(llama.HEAD, (model.vocab_size, model.width))
        if not np.array_equal(head, params["embedding"][: model.vocab_size]):
            raise UserError(
                f"The checkpoint in {folder} has tie_word_embeddings true in its config.json and a {llama.HEAD} that "
                "differs from the embedding. Set it to false to import this head, or remove the tensor."
            )
    if unknown := sorted(name for name in weights.unread if not name.endswith(COMPUTED)):
        raise UserError(
            f"The checkpoint in {folder} has {len(unknown)} tensors that no Llama of its config.json has, {unknown[0]} "
            "among them: it is another model, and cannot be imported."
        )
    return model, params, tokenizer, weights.files


def write_run(folder: Path, name: str, source: Path) -> str:
    """Writes the run directory of the checkpoint in `source`; returns a description."""
    model, params, tokenizer, files = read_model(source)
    made_from = {path.name: artifact_cache.sha256_of(path) for path in files}
    fingerprint = artifact_cache.fingerprint(made_from)
    identity = identity_of(model, tokenizer.sha256, fingerprint)
    state = new_state(jax.tree.map(jax.numpy.asarray, params), optax.identity(), jax.random.key(0))
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, identity)
        checkpoints.read_back(state, make_mesh(), identity)
    tokenizer.save(folder / "tokenizer.json")
    origin = source.resolve().name
    description = f"{llama.ARCHITECTURE} from {origin}, {model.parameters():,} parameters"
    config = {
        "name": name,
        "preset": "",
        "spec": "",
        "stage": "imported",
        "seed": 0,
        "steps": 0,
        "model": model.record(),
        "optim": {"peak_lr": 0.0},
        "data": {"mixture": {}},
        "imported": {"from": origin, "fingerprint": fingerprint},
    }
    data = run_record.DataRecord(
        made_from=made_from,
        notes=[f"imported: {description}; what it was trained on is not in our records"],
        trained_on=[f"whatever {name} was trained on"],  # not a store of ours: it counts as not searched
    )
    write_json(folder / run_record.CONFIG, config)
    run_record.write(folder, data)
    run_record.write(folder, run_dir.environment())
    run_record.write_finished(folder, steps=0)
    return description


@command
def main(argv: Sequence[str]) -> int:
    """Makes a base run of a Llama or Qwen 2 checkpoint in safetensors."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--from", type=local_path, required=True, metavar="DIR", dest="source", help="config.json and safetensors")
    add("--workdir", type=local_path, required=True, metavar="DIR", help="the new run, e.g. runs/smollm2")
    flags = parser.parse_args(argv)
    workdir = flags.workdir.resolve()
    check_place(workdir)
    if not is_free(workdir):
        raise UserError(f"{flags.workdir} is not empty. Choose another --workdir, or delete it first.")
    jax_setup.set_up()
    with new_folder(workdir) as folder:
        description = write_run(folder, workdir.name, flags.source)
    print(f"{flags.workdir}: {description}. Tune it: python -m ghost_jax.train --config=… --base={flags.workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
