"""Who may import whom, and what `import jaxdiff` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxdiff"

# Lower may not import higher; models and data stand beside the core and import none of it but what is named here.
RANKS = {
    0: ("errors", "types", "numerics"),
    1: ("schedules", "process", "processes", "prediction"),
    2: ("model", "grids"),
    3: ("samplers", "guidance", "objectives", "analytic", "sde", "likelihood"),
    4: ("files", "pictures", "train", "evaluate", "aot"),
    5: ("config", "build", "runtime"),
    6: ("convert",),
    7: ("commands", "cli", "__main__", "__init__"),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
BESIDE = {"models": {"errors", "numerics", "types"}, "data": {"errors"}}
CORE = [name for rank in range(4) for name in RANKS[rank]]


def parts():
    return sorted({path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")})


def imported(path):
    """The names of all modules a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "jaxdiff":
                yield from (f"jaxdiff.{alias.name}" for alias in node.names)


def files(part):
    return [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else sorted((ROOT / part).rglob("*.py"))


def test_every_part_has_a_rank():
    assert [name for name in parts() if name not in RANK and name not in BESIDE] == []


@pytest.mark.parametrize("part", parts())
def test_layers(part):
    for path in files(part):
        for name in imported(path):
            pieces = name.split(".")
            if pieces[0] != "jaxdiff" or len(pieces) == 1:
                continue
            other = pieces[1]
            if other == part:
                continue
            if part in BESIDE:
                assert other in BESIDE[part], f"{path.name} imports {name}"
            elif other in BESIDE:
                assert RANK[part] >= 4, f"{path.name} imports {name}"
            else:
                assert RANK[other] <= RANK[part], f"{path.name} imports {name}"


@pytest.mark.parametrize("part", CORE)
def test_the_core_imports_jax_and_numpy_only(part):
    for path in files(part):
        outside = {name.split(".")[0] for name in imported(path)} - {"jaxdiff", "jax", "numpy", "jaxtyping"}
        assert outside <= set(sys.stdlib_module_names), path


def test_only_training_uses_collectives_and_only_one_module_knows_orbax():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if "train" not in path.parts:
            assert "pmean" not in text, path
        if path.name != "checkpoint.py":
            assert "import orbax" not in text, path


def test_import_is_light_and_starts_no_backend():
    code = (
        "import sys, jaxdiff; from jax._src import xla_bridge; assert not xla_bridge._backends; "
        "heavy = {'flax', 'tensorflow', 'torch', 'orbax', 'sklearn', 'matplotlib', 'tensorflow_datasets', 'grain'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
