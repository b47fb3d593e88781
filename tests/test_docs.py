"""The documents: every public symbol documented and on a page, the examples run, the sampler table complete."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import jaxdiff
from jaxdiff import samplers

DOCS = Path(__file__).parents[1] / "docs"
# Not for import: the command line and what serves it.
PRIVATE = {"cli", "commands", "__main__", "build", "config", "files", "pictures", "errors", "numerics"}


def modules():
    for info in pkgutil.walk_packages(jaxdiff.__path__, "jaxdiff."):
        if info.name.split(".")[1] not in PRIVATE:
            yield importlib.import_module(info.name)


def symbols():
    """Every public class and function, under the module that defines it, and the public methods of the classes."""
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("module", [pytest.param(m, id=m.__name__) for m in modules()])
def test_every_module_says_what_it_is(module):
    assert inspect.getdoc(module)


@pytest.mark.parametrize("symbol", list(symbols()))
def test_every_public_symbol_is_documented(symbol):
    assert symbol.__doc__, "no docstring"
    assert not symbol.__doc__.startswith(f"{symbol.__name__}("), "the docstring is the dataclass's own signature"


def named_by_users():
    """What a package exports, and the modules that are called by their own names."""
    namespaces = ("process", "processes", "prediction", "model", "grids", "sde", "types")
    for module in modules():
        names = getattr(module, "__all__", vars(module) if module.__name__.split(".")[-1] in namespaces else ())
        for name in names:
            value = vars(module).get(name)
            local = getattr(value, "__module__", "").startswith(module.__name__)
            if local and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


def own_fields(cls):
    linen = {"parent", "name"}  # added to every module
    return [f for f in inspect.signature(cls).parameters if f not in linen] if dataclasses.is_dataclass(cls) else []


@pytest.mark.parametrize("symbol", list(named_by_users()))
def test_every_argument_is_named_in_the_docstring(symbol):
    """In its own words or by reference: "See `uniform` for the arguments"."""
    doc = symbol.__doc__ or ""
    names = own_fields(symbol) if inspect.isclass(symbol) else inspect.signature(symbol).parameters
    if re.search(r"[Ss]ee `", doc) or (len(names) == 1 and len(doc) < 120):
        return
    missing = [name for name in names if not re.search(rf"\b{name}\b", doc)]
    assert not missing


def test_every_part_has_a_page():
    pages = {
        line
        for page in (DOCS / "theory").glob("*.md")
        for line in re.findall(r"^::: jaxdiff\.(\w+)", page.read_text(), re.M)
    }
    parts = {module.__name__.split(".")[1] for module in modules()}
    assert parts <= pages


def test_examples_run():
    result = doctest.testfile(str(DOCS / "extend.md"), module_relative=False)
    assert result.attempted > 30
    assert result.failed == 0


def test_the_sampler_table_has_every_sampler():
    text = (DOCS / "samplers.md").read_text()
    for name in samplers.REGISTRY:
        assert f"| `{name}" in text, f"run: python -m benchmarks.sampler_table ({name} is missing)"
