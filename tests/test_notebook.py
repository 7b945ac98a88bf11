"""The library in a notebook: run by a real kernel, with its progress among the output."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
CELLS = (
    """
import torch, synthkd
from synthkd.networks import build_network
from synthkd.specs import load_teacher
shipped = load_teacher(synthkd.Recipe().teacher)
small = build_network("resnet8-w4", channels=1, size=16, classes=10)
""",
    """
result = synthkd.distill(
    shipped.classifier.body, small, image_size=16, channels=1,
    mean=shipped.spec.mean, std=shipped.spec.std, images=2000, out="run", progress=True,
)
""",
    "result.student(torch.rand(2, 1, 16, 16)).shape",
)


@pytest.mark.slow
def test_a_notebook_distils_shows_progress_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        notebook,
        timeout=110,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    assert "run directory: run" in shown
    assert "torch.Size([2, 10])" in str(notebook.cells[2].outputs)
    assert (tmp_path / "run" / "summary.json").is_file()
