"""Prints a JobSet, several pods as one run, for TPU slices or GPU nodes of GKE. It needs no cluster.

    python -m launch.jobset --name=base --image=IMAGE --topology=v5e:4x4 [--slices=2] [--spot] -- \\
      python -m ghost_jax.train --config=configs/pretrain_base350m.py --data_dir=gs://BUCKET/data \\
      --workdir=gs://BUCKET/runs/base | kubectl apply -f -

Every pod runs the command. Where one is lost or preempted, all of them start again and resume.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ghost_jax.core.errors import UsageError, command, parser_of, positive
from launch.chips import CHIPS, gke_hosts, parse

TEMPLATE = Path(__file__).with_name("jobset.yaml")
GKE = "cloud.google.com/gke-"  # how the labels of its nodes begin
LONGEST = 63  # characters of a name in the DNS


def tpu_slices(topology: str, slices: int) -> dict[str, Any]:
    """Returns the template's values for TPU slices, e.g. "v5e:4x4". Raises UsageError for slices that GKE lacks."""
    hosts, chips = gke_hosts(topology)
    if slices > 1 and hosts == 1:
        raise UsageError(f"--slices={slices} needs slices of several hosts, and {topology} has one. Name a larger one.")
    generation, sides = parse(topology)
    selector = {f"{GKE}tpu-accelerator": CHIPS[generation].gke_name, f"{GKE}tpu-topology": "x".join(map(str, sides))}
    return {"slices": slices, "hosts": hosts, "resource": "google.com/tpu", "devices": chips, "selector": selector}


def gpu_nodes(gpu: str, nodes: int) -> dict[str, Any]:
    """Returns the template's values for nodes with GPUs, e.g. "nvidia-h100-80gb:8". Raises UsageError."""
    name, _, count = gpu.rpartition(":")
    if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?:[1-9][0-9]{0,2}", gpu):
        raise UsageError(f"--gpu={gpu} is not GKE's name of a GPU and their count a node, as in nvidia-h100-80gb:8.")
    selector = {f"{GKE}accelerator": name}
    return {"slices": 1, "hosts": nodes, "resource": "nvidia.com/gpu", "devices": int(count), "selector": selector}


def check_names(name: str, image: str, account: str | None, nodes: dict[str, Any]) -> None:
    """Raises UsageError for a name, an image or a service account that the cluster would refuse."""
    pod = f"{name}-workers-{nodes['slices'] - 1}-{nodes['hosts'] - 1}-abcde"  # the last one
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):  # RFC 1035
        raise UsageError(f"--name={name} cannot be metadata.name. Use a-z, 0-9 and -, from a letter on.")
    if len(pod) > LONGEST:
        over = len(pod) - LONGEST
        raise UsageError(f"--name={name} cannot be metadata.name: a pod's name, {pod}, is {over} characters too long.")
    if not re.fullmatch(r"\S+", image):
        raise UsageError(f"--image={image} is not the name of an image. Write it without blanks.")
    if account and not re.fullmatch("[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", account):  # RFC 1123
        raise UsageError(f"--service_account={account} cannot be serviceAccountName. Use a-z, 0-9, - and a full stop.")


@command
def main(argv: Sequence[str]) -> int:
    """Prints a Kubernetes JobSet that runs a command on TPU slices or GPU nodes of GKE."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--image", required=True, help="built by the Dockerfile, in a registry")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--topology", metavar="SLICE", help="a TPU slice: v5e:4x4, v6e:4x4, v4:2x2x4, v5p:4x4x4, …")
    kind.add_argument("--gpu", metavar="NAME:COUNT", help="the GPUs of a node: nvidia-h100-80gb:8, nvidia-l4:1, …")
    add("--slices", type=positive, default=1, metavar="N", help="how many TPU slices (default: 1)")
    add("--nodes", type=positive, default=1, metavar="N", help="how many nodes with GPUs (default: 1)")
    add("--spot", action="store_true", help="cheap capacity that may be preempted")
    add("--service_account", metavar="NAME", help="of Kubernetes, that may use the bucket (default: the namespace's)")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what every pod runs")
    flags = parser.parse_args(argv)
    words = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not words:
        raise UsageError("There is no command to run: write it after --, e.g. -- python -m ghost_jax.train --help.")
    if (flags.slices > 1 and flags.gpu) or (flags.nodes > 1 and flags.topology):
        raise UsageError("--slices counts TPU slices and --nodes counts nodes with GPUs. Give the one that is asked.")
    nodes = tpu_slices(flags.topology, flags.slices) if flags.topology else gpu_nodes(flags.gpu, flags.nodes)
    check_names(flags.name, flags.image, flags.service_account, nodes)
    if flags.spot:
        nodes["selector"][f"{GKE}spot"] = "true"
    template = jinja2.Template(
        TEMPLATE.read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    # Kubernetes puts variables in the place of $(NAME) and reads $$ as $.
    words = [word.replace("$", "$$") for word in words]
    print(template.render(vars(flags) | nodes, words=words, tpu=bool(flags.topology)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
