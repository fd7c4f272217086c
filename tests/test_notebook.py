"""The notebook runs from top to bottom, as a student runs it, on the backend in use."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "1_first_model.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(cell):
    """What a cell printed, without warnings and progress on the error stream."""
    return "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")


def cell_with(notebook, text):
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source]
    return cell


def executed(folder):
    """The notebook after all of its cells, in fewer epochs: its training alone would take a minute and a half."""
    notebook = read()
    training = cell_with(notebook, "epochs = 12\n")
    training.source = training.source.replace("epochs = 12\n", "epochs = 3\n")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JUPYTER_PLATFORM_DIRS": "1"}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment)


@pytest.mark.long
def test_the_notebook_ends_with_a_phone_file_that_replies(tmp_path):
    notebook = executed(tmp_path)
    answers = printed(cell_with(notebook, "TFLiteEngine")).splitlines()
    assert len(answers) == 3 and any(line.split(" → ")[1].strip() for line in answers)
    assert (tmp_path / "runs" / "first_model" / "run" / "export" / "model_int8.tflite").is_file()
    (curve,) = cell_with(notebook, "SVG(data").outputs
    assert curve["data"]["image/svg+xml"].count("<polyline") > 2


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
