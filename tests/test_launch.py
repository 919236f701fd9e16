"""launch/: the scripts work without a cluster, and the local launcher treats its processes as one."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
SLURM = ["bash", str(ROOT / "launch" / "slurm.sbatch")]
POD = ["bash", str(ROOT / "launch" / "tpu_pod.sh"), "--name=base", "--zone=us-west4-a", "--type=v5litepod-16"]


def shell(words: list[str], cwd: Path, tools: Path | str = "/bin") -> subprocess.CompletedProcess:
    """Runs a script with these programs before the system's and with no other variables."""
    return subprocess.run(words, cwd=cwd, env={"PATH": f"{tools}:/usr/bin:/bin"}, capture_output=True, text=True)


def tools(folder: Path, **programs: str) -> Path:
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_shellcheck_finds_nothing(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        result = subprocess.run(["shellcheck", "--shell=bash", str(script)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("signum", "preempted", "said"),
    [
        (signal.SIGUSR1, "None", ["saved", "requeue 7"]),  # out of time: the tasks save
        (None, "2026-11-28T04:09:34", ["saved", "requeue 7"]),  # preempted: Slurm asks the tasks alone
        (None, "None", ["saved"]),  # they failed
        (signal.SIGTERM, "None", []),  # cancelled: what a user stops does not start again
    ],
)
def test_a_slurm_job_saves_and_is_requeued_unless_it_failed_or_was_cancelled(tmp_path, signum, preempted, said):
    # The tasks save when they get SIGTERM. srun itself answers it by killing them.
    task = "trap 'sleep 0.5; echo saved; exit 1' TERM; echo $$ >task; while true; do sleep 0.1; done"
    srun = "test $SRUN_CPUS_PER_TASK = 6 || exit 9\n"
    srun += f"trap 'kill -9 $(cat task); echo killed; exit 1' TERM\n({task}) & echo ready $*\nwait $!"
    asked = f'case "$1" in show) echo " PreemptTime={preempted} ";; *) echo $*;; esac'
    programs = tools(tmp_path, srun=srun.replace("$$", "$BASHPID"), scontrol=asked, scancel="kill -TERM $(cat task)")
    env = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    env["SLURM_CPUS_PER_TASK"] = "6"
    words = [*SLURM, "--config=configs/chat_v5.py"]
    job = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert "ghost_jax.train --config=configs/chat_v5.py" in job.stdout.readline()
    while not (tmp_path / "task").exists() or not (task_id := (tmp_path / "task").read_text()):
        time.sleep(0.01)
    try:
        job.send_signal(signum) if signum else os.kill(int(task_id), signal.SIGTERM)
        assert job.wait(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert job.stdout.read().splitlines() == said


def test_a_dry_run_of_the_pod_prints_every_command_and_runs_none(tmp_path):
    command = ["python", "-m", "ghost_jax.train", "--workdir=/mnt/a b"]
    result = shell([*POD, "--spot", "--project=p q", "--dry_run", "--", *command], tmp_path)
    assert result.returncode == 0, result.stderr
    commands = [line[2:] for line in result.stderr.splitlines() if line.startswith("+ ")]
    steps = ("git", "queued-resources create", "scp", "requirements-tpu", "ghost_jax.train", "mkdir", "cat", "delete")
    assert [step in line for line, step in zip(commands, steps, strict=True)] == [True] * len(steps)
    assert "--spot" in commands[1]
    assert "--worker=all" in commands[4]
    assert r"--project=p\ q" in commands[1]
    assert r"--workdir=/mnt/a\\\ b" in commands[4]  # quoted once for the worker's shell, once for this one's
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [[*POD[:2], "--name=base"], [*POD, "--nonsense", "--", "true"], [*POD, "--name=a;b", "--", "true"]]
)
def test_bad_usage_of_the_pod_is_answered_with_the_usage(words, tmp_path):
    result = shell(words, tmp_path)
    assert result.returncode == 2
    assert "usage: launch/tpu_pod.sh" in result.stderr


def cloud(folder: Path, training: str) -> str:
    """A gcloud that logs its calls and keeps the state of one slice in files of `folder`; it trains by `training`."""
    return f"""
cd {folder}
echo "$*" >>calls
case "$*" in
  *describe*)
    if [[ -e offline ]]; then rm offline; echo UNAVAILABLE >&2; exit 1; fi
    cat state 2>/dev/null || {{ echo 'ERROR: (gcloud) NOT_FOUND: Resource' >&2; exit 1; }} ;;
  *create*) echo ACTIVE >state ;;
  *delete*) rm state ;;
  *"the command"*) if (($(grep -c "the command" calls) == 1)); then {training}; fi ;;
esac"""


POD_COMMAND = ["--", "echo", "the", "command"]


def requests_of(folder: Path) -> tuple[int, int]:
    asked = (folder / "calls").read_text() if (folder / "calls").exists() else ""
    return asked.count("queued-resources create"), asked.count("queued-resources delete")


@pytest.mark.parametrize(
    ("before", "training", "code", "requests"),
    [
        ("", "echo SUSPENDED >state; exit 255", 0, (2, 2)),  # preempted
        ("", "exit 255", 0, (1, 1)),  # the connection broke
        ("", "touch offline; exit 255", 0, (1, 1)),
        ("", "exit 3", 3, (1, 1)),
        ("ACTIVE", "exit 3", 3, (0, 0)),
        ("SUSPENDED", "true", 0, (1, 2)),
    ],
)
def test_a_slice_is_used_while_active_and_deleted_if_requested_here(tmp_path, before, training, code, requests):
    if before:
        (tmp_path / "state").write_text(before)
    programs = tools(tmp_path, gcloud=cloud(tmp_path, training), sleep="")
    result = shell([*POD, f"--logs={tmp_path}/logs", *POD_COMMAND], tmp_path, programs)
    assert (result.returncode, requests_of(tmp_path)) == (code, requests), result.stderr
    assert ("base stays, and is billed" in result.stderr) == (before == "ACTIVE")


def test_a_checkout_that_cannot_be_packed_is_refused_before_a_slice_is_requested(tmp_path):
    result = shell([*POD, *POD_COMMAND], tmp_path, tools(tmp_path, gcloud=cloud(tmp_path, "true"), tar="exit 2"))
    assert (result.returncode, requests_of(tmp_path)) == (1, (0, 0))
    assert "cannot be packed" in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_delete_the_slice(tmp_path, signum):
    # The file is written without a process: bash that waits for one goes on where that ends by itself after SIGINT.
    env = {"PATH": f"{tools(tmp_path, gcloud=cloud(tmp_path, ': >training; exec tail -f /dev/null'))}:/usr/bin:/bin"}
    process = subprocess.Popen([*POD, *POD_COMMAND], env=env, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "training").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signum)
    assert (process.wait(30), requests_of(tmp_path)) == (130, (1, 1))


def two_processes(ghost, script: str) -> subprocess.Popen:
    return ghost.start("launch.local", "--processes=2", "--", "python", "-c", script)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process(ghost, signum):
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(signum)}, lambda *_: sys.exit(print('saved')))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    process = two_processes(ghost, script)
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signum)
    assert sorted(ghost.finish(process).stdout.splitlines()) == ["[0] saved", "[1] saved"]


def test_a_signal_reaches_what_a_process_that_ended_left_behind(ghost):
    process = ghost.start("launch.local", "--processes=1", "--", "bash", "-c", "sleep 600 & echo ready; exit 3")
    assert process.stdout.readline() == "[0] ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) != 0


def test_processes_end_where_nobody_reads_them(ghost):
    process = two_processes(ghost, "import os\nwhile True: os.write(1, b'x\\n')")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) != 0
    assert "Exception in thread" not in process.stderr.read()


def test_processes_end_with_a_launcher_that_is_killed(ghost):
    process = two_processes(ghost, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    ids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{one}").exists() for one in ids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("words", [[], ["--", "no-program"], ["--", "/etc/passwd"], ["--processes=0", "--", "true"]])
def test_a_launcher_without_a_command_is_bad_usage(ghost, words):
    ghost.refused_here("launch.local", "--processes=2", *words, code=2)
