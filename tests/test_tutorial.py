"""docs/tutorial.ipynb runs from top to bottom, and holds no output of some machine."""

import json

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(ghost, tmp_path):
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    (tmp_path / "tutorial.py").write_text("\n\n".join(code))
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    printed = ghost("tutorial", env=environment, cwd=tmp_path).stdout
    assert "over all orders" in printed
    assert "Initial Access\n" in printed
