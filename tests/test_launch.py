"""launch/: the scripts parse, and outside their scheduler they run the command that they are for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()


def test_the_slurm_script_runs_the_training_command(tmp_path):
    result = subprocess.run(
        [
            "bash",
            str(ROOT / "launch" / "slurm.sbatch"),
            "--config=configs/chat_v5.py:nanno",
            "--workdir",
            str(tmp_path),
        ],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GHOST_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert 'Did you mean "nano"?' in result.stderr
    assert not Path(tmp_path / "config.json").exists()
