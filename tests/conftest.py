"""The test run's own rules: 8 host devices, no silent broadcasting, annotations checked at run time."""

import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TFDS_DATA_DIR"] = os.environ.get("TFDS_DATA_DIR") or tempfile.mkdtemp()  # not the home folder

from jaxtyping import install_import_hook

install_import_hook("jaxdiff", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget the compiled programs of a file: of some thousands in one process the compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for comparisons with closed forms."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS folder with the digits prepared once for all tests."""
    from jaxdiff import data

    folder = tmp_path_factory.mktemp("tfds")
    data.make("digits", data_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def quick_compile():
    """Compile with little optimisation, where a test is about what a command does and not about its numbers."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
