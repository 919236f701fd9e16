"""Fixtures that several test files share: the project's commands as real processes, and one finished tiny run."""

import contextlib
import dataclasses
import fcntl
import functools
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import settings

settings.load_profile("ci")  # the same examples every time, and no deadline that a busy machine misses
# Before anything imports jax. `Ghost` gives the commands that it starts an environment of their own.
# Compiling takes longer than what tests compute: most optimizations are off, and so are the slow emitters of fusions.
COMPILE_FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
os.environ |= COMPILE_FAST | {"XLA_FLAGS": f"{COMPILE_FAST['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}

# What nohup or a shell script starts may ignore signals, and so do the processes it starts. A handler is not inherited.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

ROOT = Path(__file__).parents[1]
WAIT = 600  # seconds that no command of a test needs, also on a slow machine with other work
# Both stages of a chat run, made as small as they can be; its stores and compiled programs are shared by the session.
TINY = {
    "model.layers": 1, "model.width": 32, "model.heads": 2, "model.mlp_dim": 64, "model.vocab_size": 1024,
    "model.context": 128, "data.seq_len": 96, "data.validation_records": 8,
    "model.dtype": "float32",  # whatever the machine: what is equal bit for bit on one is not on another
    "steps": 8, "batch_size": 8, "micro_batch_size": 8, "optim.warmup_steps": 2,
    "eval_every": 4, "save_every": 2, "log_every": 1,
}  # fmt: skip


def set_all(values: dict) -> list[str]:
    """Returns the flags that set these keys of a config."""
    return [f"--config.{key}={value}" for key, value in values.items()]


def both_stages(values: dict) -> list[str]:
    """Returns the flags that set these keys of a chat config and of its base."""
    return set_all(values | {f"base.{key}": value for key, value in values.items()})


def tiny_base(workdir: Path, *flags: str) -> list[str]:
    """Returns the command line of the tiny run's base alone in `workdir`; `flags` come last and win."""
    return ["ghost_jax.train", "--config=configs/pretrain_v05.py:nano", f"--workdir={workdir}", *set_all(TINY), *flags]


def tiny_chat(workdir: Path, *flags: str) -> list[str]:
    """Returns the command line of the tiny chat run in `workdir`; `flags` come last and win."""
    chat = ["ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--workdir={workdir}"]
    return [*chat, *both_stages(TINY), *flags]


Environment = dict[str, str | None]  # a variable that is None is not set


class Ghost:
    """Runs the project's commands as a user does: a new process each, from the repository's root.

    The environment is that of the tests without what could lead a run elsewhere: no GHOST_DATA, no network, one
    device, no Python flags, the CPU alone, and a cache of the session's own. No command may ever show a traceback.
    """

    def __init__(self, cache: Path):
        self.cache = cache

    def environment(self, env: Environment | None = None) -> dict[str, str]:
        """Returns the variables that a command is given, changed by `env`."""
        unwanted = ("GHOST_", "HF_", "XLA_", "JAX_", "PYTHON")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
        clean |= {"XDG_CACHE_HOME": str(self.cache), "JAX_PLATFORMS": "cpu", "GHOST_OFFLINE": "1"}
        clean |= COMPILE_FAST | (env or {})
        return {key: value for key, value in clean.items() if value is not None}

    def start(self, *command: str | Path, env: Environment | None = None, cwd: Path = ROOT) -> subprocess.Popen:
        """Starts `python -m command…` in a checkout and does not wait for it."""
        words = [sys.executable, "-m", *map(str, command)]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        return subprocess.Popen(words, cwd=cwd, env=self.environment(env), **how)

    def finish(self, process: subprocess.Popen, check: bool = True) -> subprocess.CompletedProcess:
        """Waits for a process and returns its exit code and what it printed."""
        try:
            out, err = process.communicate(timeout=WAIT)
        finally:
            process.kill()
        assert "Traceback" not in err, err
        assert not check or process.returncode == 0, out + err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(self, *command: str | Path, env: Environment | None = None, check: bool = True, cwd: Path = ROOT):
        """Runs a command to its end; with `check`, it must succeed."""
        return self.finish(self.start(*command, env=env, cwd=cwd), check)

    def here(self, module: str, *words: str | Path, env: Environment | None = None, check: bool = True):
        """Runs a command in this process, which takes a tenth of the time of a new one, in the repository's root.

        It has the same environment but for the 8 simulated devices of the tests, so that training has its own process.
        """
        clean = self.environment(env)
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with pytest.MonkeyPatch.context() as patch:
            for key in os.environ.keys() - clean.keys():
                patch.delenv(key)
            for key, value in clean.items():
                patch.setenv(key, value)
            patch.chdir(ROOT)
            patch.setattr("sys.argv", [module, *map(str, words)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = importlib.import_module(module).main([str(word) for word in words])
                except SystemExit as end:  # argparse
                    code = end.code or 0
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert not check or code == 0, out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess([module, *words], code, out.getvalue(), err.getvalue())

    def refused_here(self, *command: str | Path, code: int = 1, env: Environment | None = None) -> str:
        """Runs a command in this process that must fail, as `refused`."""
        return paragraph_of(self.here(*command, env=env, check=False), code)

    def refused(self, *command: str | Path, code: int = 1, env: Environment | None = None) -> str:
        """Runs a command that must fail with one paragraph and this exit code; returns the paragraph on one line."""
        return paragraph_of(self(*command, env=env, check=False), code)

    def stop_at(self, process: subprocess.Popen, workdir: Path, updates: int, signum: int = signal.SIGKILL) -> None:
        """Sends a signal when the run in `workdir` has logged so many updates, which must be before its end."""
        deadline = time.monotonic() + WAIT
        while len(updates_of(workdir)) < updates and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signum)
        result = self.finish(process, check=False)
        assert not (workdir / "status.json").exists(), "the run came to its end before the signal"
        assert len(updates_of(workdir)) >= updates, result.stdout + result.stderr
        if signum == signal.SIGKILL:
            assert result.returncode == -signal.SIGKILL
        else:
            assert "Stopped on request" in paragraph_of(result, 1)


def paragraph_of(result: subprocess.CompletedProcess, code: int) -> str:
    """Returns the error of a failed command on one line, after checking that it is one paragraph and its exit code."""
    assert result.returncode == code, result.stdout + result.stderr
    usage, error, text = result.stderr.rpartition("error:")  # a long path stands on a line of its own
    assert error, f"no error is named:\n{result.stderr}"
    assert "\n\n" not in text.strip(), result.stderr
    assert code == 2 or not usage, f"something stands before the paragraph:\n{result.stderr}"
    return " ".join(text.split())


def updates_of(workdir: Path) -> list[str]:
    """Returns the whole lines of a run's metrics."""
    path = workdir / "metrics.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def losses_of(workdir: Path) -> list[dict]:
    """Returns what a run computed, update by update: its metrics without those that a clock or the machine decides."""
    from ghost_jax.runs.metrics import MEASURED  # not above: it imports jax

    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in updates_of(workdir)]


def score_of(workdir: Path) -> dict:
    """Returns the score that a run took at its end."""
    return json.loads((workdir / "evals" / "ctibench.json").read_text())


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The run directories of a finished tiny chat run and of its base, and what its first command printed."""

    workdir: Path
    base: Path
    stdout: str

    def beside_base(self, folder: Path) -> Path:
        """Returns a free run directory in `folder` for a chat run; a copy of the trained base lies beside it."""
        shutil.copytree(self.base, folder / self.base.name)
        return folder / "chat"


def shared_by_workers(tmp_path_factory) -> Path:
    """Returns the folder that all processes of one `pytest -n` have in common; of a process alone, its own."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def ghost(tmp_path_factory) -> Ghost:
    """Runs the project's commands in a clean environment with a cache that all workers of the session share."""
    cache = shared_by_workers(tmp_path_factory) / "cache"
    cache.mkdir(exist_ok=True)
    return Ghost(cache)


@pytest.fixture(scope="session")
def tiny_run(ghost, tmp_path_factory) -> FinishedRun:
    """A chat run with its base, trained from nothing by the real command, once for all workers.

    Tests read it and do not change it.
    """
    runs = shared_by_workers(tmp_path_factory) / "runs"
    runs.mkdir(exist_ok=True)
    workdir, printed = runs / "chat", runs / "stdout.txt"
    with (runs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.is_file():
            printed.write_text(ghost(*tiny_chat(workdir)).stdout, encoding="utf-8")
    return FinishedRun(workdir, runs / "pretrain_v05-nano", printed.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny(tiny_run) -> types.SimpleNamespace:
    """The tiny run's model on one device: its `config`, `params`, `tokenizer` and `predict(batch, at, targets)`."""
    from ghost_jax.text import tokenizer  # not above: they import jax
    from ghost_jax.training.loading import load_model
    from ghost_jax.training.step import make_predict
    from tests.models import one_device

    config, params, _ = load_model(tiny_run.workdir, one_device())
    predict = functools.partial(make_predict(config, params, one_device()), params)
    loaded = tokenizer.load(tiny_run.workdir / "tokenizer.json")
    return types.SimpleNamespace(config=config, params=params, tokenizer=loaded, predict=predict)


@pytest.fixture(scope="session")
def with_libtpu(tmp_path_factory) -> Environment:
    """Variables of a process that has a libtpu installed, which says "libtpu is loaded" where JAX looks for a TPU."""
    folder = tmp_path_factory.mktemp("site")
    # While JAX is imported, it asks for the library too, on any machine, and loads nothing.
    (folder / "libtpu.py").write_text(
        "import sys\n"
        "def get_library_path():\n"
        "    if hasattr(sys.modules['jax'], 'devices'):\n"
        "        print('libtpu is loaded', file=sys.stderr)\n"
        "    return '/no/libtpu.so'\n"
    )
    return {"PYTHONPATH": str(folder), "JAX_PLATFORMS": None}


@pytest.fixture(scope="session")
def ghost_data() -> Path:
    """The folder of real inputs that GHOST_DATA names; tests that need it are skipped where there is none."""
    folder = os.environ.get("GHOST_DATA", "")
    for name in ("raw", "corpus", "ctibench/cti-mcq.tsv"):
        if not folder or not (Path(folder) / name).exists():
            pytest.skip(f"GHOST_DATA is not set or has no {name}: set it to the folder with raw/, corpus/, ctibench/")
    return Path(folder)
