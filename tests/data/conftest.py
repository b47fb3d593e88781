from pathlib import Path

import pytest

from jaxdiff import data


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS folder with the digits prepared once for all tests."""
    folder = tmp_path_factory.mktemp("tfds")
    data.make("digits", data_dir=str(folder))
    return folder
