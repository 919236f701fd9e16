"""launch/jobset.py: manifests are those of the API, their processes find each other; the image and its packages."""

import re
import shutil
import subprocess

import pytest
import yaml
from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster

from ghost_jax.core.errors import BAD_USAGE, STOPPED_BY_WATCH
from ghost_jax.parallel import distributed
from launch.chips import gke_hosts
from launch.jobset import main
from tests.conftest import ROOT

WORDS = ["python", "-m", "ghost_jax.train", "--config=configs/chat_v5.py", '--workdir=gs://b/it\'s <a> "b": {c}']
WORDS += ["$$ $(XDG_CACHE_HOME) $"]
NAMED = ["--name=base", "--image=registry.example/ghost:1"]
TPU = ["--topology=v5e:4x4", "--slices=2", "--spot", "--service_account=trainer"]
GPU = ["--gpu=nvidia-l4:2", "--nodes=3"]


@pytest.fixture
def manifest(capsys):
    def of(*flags: str) -> dict:
        assert main([*NAMED, *flags, "--", *WORDS]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return of


def job_of(manifest: dict) -> tuple[int, dict, dict]:
    """Returns how many jobs there are, and the spec of a job and of its pods."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated["replicas"], job, job["template"]["spec"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "label"),
    [
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice"),
        ("v5p:4x8x12", 96, 4, "tpu-v5p-slice"),
    ],
)
def test_a_slice_is_a_job_with_a_pod_a_host(manifest, topology, hosts, chips, label):
    jobs, job, pod = job_of(manifest(f"--topology={topology}"))
    assert (jobs, job["parallelism"], job["completions"]) == (1, hosts, hosts)
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert [word.replace("$$", "$") for word in container["command"]] == WORDS, "Kubernetes reads $$ as $"
    assert not any("$(" in word.replace("$$", "") for word in container["command"])
    gke, shape = "cloud.google.com/gke-tpu", topology.partition(":")[2]
    assert pod["nodeSelector"] == {f"{gke}-accelerator": label, f"{gke}-topology": shape}


@pytest.mark.parametrize("flags", [TPU, GPU, ["--topology=v5p:2x2x1"]], ids=["slices", "gpu", "one host"])
def test_the_models_generated_from_the_api_of_kubernetes_keep_every_field(manifest, flags):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install -r requirements-dev.txt")
    whole = manifest(*flags)
    assert models.JobsetV1alpha2JobSet.from_dict(whole).to_dict() == whole
    _, _, pod = job_of(whole)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert ("/dev/shm" in mounts.values()) == (flags == GPU), "NCCL needs more than a container has"


def test_exit_codes_that_would_come_again_fail_the_set_and_the_loss_of_a_spot_node_does_not_count(manifest):
    whole = manifest(*TPU)
    _, job, pod = job_of(whole)
    assert (pod["nodeSelector"]["cloud.google.com/gke-spot"], pod["serviceAccountName"]) == ("true", "trainer")
    by_code, by_condition = job["podFailurePolicy"]["rules"]
    codes = by_code["onExitCodes"]
    assert (codes["values"], codes["containerName"]) == ([BAD_USAGE, STOPPED_BY_WATCH], pod["containers"][0]["name"])
    assert by_condition["onPodConditions"][0]["type"] == "DisruptionTarget"
    # The message of the job controller, of which JobSet sees nothing else.
    message = "Container ghost-jax for pod default/base-0 failed with exit code {} matching FailJob rule at index 0"
    final, disrupted = whole["spec"]["failurePolicy"]["rules"]
    (pattern,) = final["onJobFailureMessagePatterns"]
    assert [code for code in range(256) if re.search(pattern, message.format(code))] == codes["values"]
    assert not re.search(pattern, "Pod default/base-0 has condition DisruptionTarget matching FailJob rule at index 1")
    assert (final["action"], disrupted["action"]) == ("FailJobSet", "RestartJobSetAndIgnoreMaxRestarts")


def environment(manifest: dict, job: int, pod: int) -> dict[str, str]:
    """Returns the variables of one pod, with the fields that JobSet and the job controller give it."""
    fields = {
        "metadata.labels['jobset.sigs.k8s.io/job-index']": str(job),
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(pod),
    }
    variables = job_of(manifest)[2]["containers"][0]["env"]
    return {
        each["name"]: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in variables
    }


def test_processes_on_nodes_with_gpus_find_the_first_one(manifest, monkeypatch):
    found = []
    for pod in range(3):
        for name, value in environment(manifest(*GPU), 0, pod).items():
            monkeypatch.setenv(name, value)
        found.append(distributed._local_arguments())
    first = {"num_processes": 3, "coordinator_address": "base-workers-0-0.base:8476"}
    assert [first.items() <= each.items() for each in found] == [True] * 3
    assert [each["process_id"] for each in found] == [0, 1, 2]
    monkeypatch.setenv(distributed.PROCESSES, environment(manifest("--gpu=nvidia-l4:2"), 0, 0)[distributed.PROCESSES])
    assert distributed._local_arguments() is None


def test_processes_of_two_slices_are_counted_through(manifest, monkeypatch):
    whole, hosts = manifest(*TPU), gke_hosts("v5e:4x4")[0]
    numbers = []
    for job in range(2):
        for pod in range(hosts):
            names = [f"base-workers-{job}-{index}.base" for index in range(hosts)]
            of_gke = {"TPU_WORKER_ID": str(pod), "TPU_WORKER_HOSTNAMES": ",".join(names)}
            for name, value in (environment(whole, job, pod) | of_gke).items():
                monkeypatch.setenv(name, value)
            assert GkeTpuCluster.get_process_count() == 2 * hosts
            numbers.append(GkeTpuCluster.get_process_id())
            assert numbers[-1] or names[0] == environment(whole, job, pod)["MEGASCALE_COORDINATOR_ADDRESS"]
    assert numbers == list(range(2 * hosts))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--topology=v5e:3x4"], "v5e:3x4"),
        (["--topology=v5e:4x4", "--"], "no command"),
        (["--topology=v4:16x16x20"], "v4:16x16x20"),
        (["--topology=v5e:2x2", "--slices=2"], "--slices=2"),
        (["--topology=v5e:4x4", "--nodes=2"], "--nodes"),
        (["--gpu=nvidia-l4:0"], "--gpu=nvidia-l4:0"),
        (["--gpu=nvidia l4:1"], "--gpu=nvidia"),
        (["--topology=v5e:4x4", "--name=Base"], "metadata.name"),
        (["--topology=v5e:4x4", f"--name={'a' * 46}"], "metadata.name"),
        (["--topology=v5e:4x4", "--image="], "image"),
        (["--topology=v5e:4x4", "--service_account=a b"], "serviceAccountName"),
    ],
)
def test_what_the_cluster_lacks_or_refuses_is_bad_usage(flags, named, capsys):
    words = flags if "--" in flags else [*flags, "--", *WORDS]
    assert main([*NAMED, *words]) == BAD_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert named in printed.err


@pytest.mark.parametrize("variant", ["cpu", "cuda", "tpu"])
def test_the_image_has_the_required_packages_each_by_its_hash(variant):
    lines = (ROOT / "launch" / "image" / f"{variant}.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []
    names = ["requirements.txt", "requirements-stores.txt"]
    names += [f"requirements-{variant}.txt"] if variant != "cpu" else []

    def pins(lines: list[str]) -> set[tuple[str, str]]:  # with one spelling of each name, without extras
        found = (re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", line) for line in lines)
        return {(re.sub(r"[-_.]+", "-", each[1]).lower(), each[2]) for each in found if each}

    wanted = pins([line for name in names for line in (ROOT / name).read_text().splitlines()])
    assert wanted - pins(lines) == set(), "make image-lock"


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint") or pytest.skip("hadolint is not installed: pip install -r requirements-dev.txt")
    subprocess.run([hadolint, "--failure-threshold=style", "Dockerfile"], cwd=ROOT, check=True)
