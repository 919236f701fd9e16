"""ghost_jax/__init__.py: a command starts itself anew with huge pages, once, and only where that changes something."""

import os
import subprocess
import sys

import pytest

import ghost_jax
from tests.conftest import ROOT


class Started(Exception):
    pass


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which huge pages are given on request, and a command of ours that was just typed."""
    policy = tmp_path / "enabled"
    policy.write_text("always [madvise] never\n")
    monkeypatch.setattr(ghost_jax, "_POLICY", policy)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "ghost_jax.train", "--plan"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    def started(program, words, environment):
        assert (program, words) == (sys.executable, sys.orig_argv)
        raise Started(environment["GLIBC_TUNABLES"])

    monkeypatch.setattr(os, "execve", started)
    return policy


@pytest.mark.parametrize("others", ["", "glibc.malloc.perturb=1"])
def test_a_command_starts_anew_with_the_same_words_and_the_setting_beside_others(machine, monkeypatch, others):
    monkeypatch.setenv("GLIBC_TUNABLES", others)
    with pytest.raises(Started, match=rf"^{others}:?{ghost_jax.HUGE_PAGES}$"):
        ghost_jax._start_with_huge_pages()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "evals.ctibench"])
    with pytest.raises(Started):
        ghost_jax._start_with_huge_pages()


@pytest.mark.parametrize(
    ("words", "policy", "tunables"),
    [
        (["python", "-m", "pytest"], "[madvise]", ""),
        (["python", "-c", "import ghost_jax"], "[madvise]", ""),
        (["python", "-m", "ghost_jaxes.train"], "[madvise]", ""),
        (["python", "-m", "ghost_jax.train"], "[always] madvise", ""),
        (["python", "-m", "ghost_jax.train"], "[madvise]", "glibc.malloc.hugetlb=0"),
    ],
)
def test_whatever_would_gain_nothing_is_left_alone(machine, monkeypatch, words, policy, tunables):
    machine.write_text(policy)
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    ghost_jax._start_with_huge_pages()


def test_a_real_command_runs_to_its_end_with_the_setting(tmp_path):
    if "[madvise]" not in (ghost_jax._POLICY.read_text() if ghost_jax._POLICY.is_file() else ""):
        pytest.skip("this machine gives huge pages to all or to none")
    (tmp_path / "sitecustomize.py").write_text("import os; print(os.environ.get('GLIBC_TUNABLES'), flush=True)\n")
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    words = [sys.executable, "-m", "ghost_jax.data.show", "--help"]
    said = subprocess.run(
        words, cwd=ROOT, env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[:2] == ["None", ghost_jax.HUGE_PAGES]
    assert said[2].startswith("usage:")
