"""Notebooks are kept as pairs: the .py is what is edited, the .ipynb what Colab opens, without outputs."""

import json
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "conftest.py")


def _cells(notebook: dict) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def test_every_notebook_has_its_script() -> None:
    assert SCRIPTS
    assert [path.stem for path in SCRIPTS] == [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
class TestPair:
    def test_same_cells(self, script: Path) -> None:
        notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
        assert _cells(notebook) == _cells(jupytext.read(script))

    def test_no_outputs_and_little_metadata(self, script: Path) -> None:
        notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
        assert set(notebook["metadata"]) == {"jupytext", "kernelspec"}
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert notebook["metadata"]["jupytext"] == {"formats": "ipynb,py:percent"}
        for cell in notebook["cells"]:
            assert cell["metadata"] == {}
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None
