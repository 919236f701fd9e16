"""A process of a command: its errors, JAX settings, compute type and huge pages."""

import errno
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import ghost_jax
from ghost_jax.config import load as config_lib
from ghost_jax.core import jax_setup
from ghost_jax.core.console import Progress, make_console
from ghost_jax.core.errors import BAD_USAGE, FAILED, UsageError, UserError, command, say_error
from ghost_jax.runs import run_dir
from tests.conftest import ROOT, tiny_base


@pytest.fixture
def sigterm():
    """Restores the handler of SIGTERM, which a command replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def failing(fault: BaseException, cause: BaseException | None = None):
    def main(argv):
        raise fault from cause

    return main


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize(
    ("main", "code", "named"),
    [
        (lambda argv: np.zeros(1 << 50), FAILED, "micro_batch_size"),
        (lambda argv: len(jnp.zeros(1 << 46)), FAILED, "micro_batch_size"),
        (failing(UsageError("an unknown key")), BAD_USAGE, "an unknown key"),
        (failing(KeyboardInterrupt()), FAILED, "Stopped on request"),
        (failing(RuntimeError("a library's words"), NO_SPACE), FAILED, "disk is full"),
        (failing(OSError("1028 requested and 606 written")), FAILED, "disk is full"),
        (failing(PermissionError(errno.EACCES, "Permission denied", "/some/file")), FAILED, "/some/file"),
        (failing(OSError(errno.EFBIG, "File too large")), FAILED, "File too large"),
    ],
    ids=["memory of NumPy", "memory of JAX", "usage", "interrupt", "full disk", "disk of NumPy", "permission", "size"],
)
def test_a_fault_that_a_user_can_fix_ends_a_command_with_a_paragraph(capsys, main, code, named):
    assert command(main)() == code
    paragraph = capsys.readouterr().err
    assert paragraph.startswith("error: ")
    assert named in " ".join(paragraph.split())


def test_a_label_and_a_note_are_no_markup(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Progress("asking a[/b]", 1, unit="replies") as bar:
        bar.advance(1, note="[c]")
    shown = capsys.readouterr().out
    assert "asking a[/b]" in shown
    assert "[c]" in shown


def test_no_printed_text_controls_the_terminal_or_shows_a_password(capsys):
    make_console().print("run[a] \x1b[31m")
    say_error("no file \x1b]0;x\x07 at https://me:canary@host/x")
    printed = capsys.readouterr()
    assert r"run[a] \x1b[31m" in printed.out
    assert r"\x1b]0;x\x07" in printed.err
    assert "canary" not in printed.err


@pytest.mark.usefixtures("sigterm")
def test_a_defect_raises_also_where_it_causes_its_own_cause():
    first, second = ValueError("first"), KeyError("second")
    second.__context__ = first
    with pytest.raises(ValueError, match="first"):
        command(failing(first, second))()
    with pytest.raises(FileNotFoundError):
        command(failing(FileNotFoundError(errno.ENOENT, "No such file", "/some/file")))()
    assert command(lambda argv: None)([]) == 0


@pytest.mark.slow
def test_an_installed_tpu_library_is_not_loaded_without_a_tpu(ghost, with_libtpu, tmp_path):
    opened = tmp_path / "peak_lr=0.02-seed2"  # opening a run that is there asks JAX which process this is
    opened.mkdir()
    groups = '"model": {"dtype": "float32"}, "data": {}, "optim": {}'
    (opened / "config.json").write_text(f'{{"stage": "chat", "seed": 7, "steps": 1, {groups}}}')
    sweep = ["ghost_jax.sweep", "--config=configs/sweeps/lr.py:nano", f"--runs={tmp_path}", "--dry_run"]
    started = [ghost.start(*words, env=with_libtpu) for words in (tiny_base(tmp_path / "base", "--plan"), sweep)]
    plan, refused = (ghost.finish(process, check=False) for process in started)
    assert (plan.returncode, refused.returncode) == (0, FAILED)
    assert "libtpu is loaded" not in plan.stderr + refused.stderr


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("avx512f amx_bf16", "bfloat16"), ("avx512_bf16 fma", "bfloat16"), ("avx512f amx_int8", "float32")],
)
def test_a_cpu_trains_in_bfloat16_if_it_has_the_instructions(tmp_path, flags, dtype):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    assert jax_setup.fast_dtype(tmp_path / "cpuinfo") == dtype
    assert jax_setup.fast_dtype(tmp_path / "absent") == "float32"


@pytest.mark.parametrize(("begun_in", "other"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_keeps_the_type_it_began_with(tmp_path, begun_in, other):
    def settled(dtype):
        config = config_lib.load("configs/pretrain_v05.py:nano")
        config_lib.override(config, "model.dtype", dtype)
        run_dir.settle(config, tmp_path)
        return config

    assert settled("auto").model.dtype == jax_setup.fast_dtype()
    run_dir.open_run(tmp_path, settled(begun_in))
    assert settled("auto").model.dtype == begun_in
    with pytest.raises(UserError, match=r"model\.dtype"):
        run_dir.open_run(tmp_path, settled(other))


def test_an_installed_package_has_no_commit_of_the_project_around_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    (tmp_path / "run_dir.py").write_text("")
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / "run_dir.py"))
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=first")
    assert run_dir.environment().git_commit == ""
    git("add", "run_dir.py")
    assert len(run_dir.environment().git_commit) == 40


def test_a_real_command_restarts_once_with_huge_pages(tmp_path):
    if "[madvise]" not in (ghost_jax._SETTING.read_text() if ghost_jax._SETTING.is_file() else ""):
        pytest.skip("this machine gives huge pages to all processes or to none")
    (tmp_path / "sitecustomize.py").write_text("import os; print(os.environ.get('GLIBC_TUNABLES'), flush=True)\n")
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = str(tmp_path)
    words = [sys.executable, "-m", "ghost_jax.data.show", "--help"]
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[:2] == ["None", ghost_jax.HUGE_PAGES]


def test_a_reader_that_ends_early_sees_no_traceback(ghost):
    process = ghost.start("ghost_jax", "--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
