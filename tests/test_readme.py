"""The README's Python runs as it stands, and its commands name files that exist."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_functional_api_runs():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted >= 10
    assert result.failed == 0


def test_paths_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"--config (configs/\S+\.py)", text):
        assert (ROOT / path).exists(), path


def test_the_set_up_is_one_line_each():
    text = (ROOT / "README.md").read_text()
    assert text.count("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt") == 2
