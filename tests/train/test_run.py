"""What is kept beside a run's checkpoints, and what of it is refused."""

import json

import pytest

from jaxdiff import build
from jaxdiff.config import default_config
from jaxdiff.errors import UsageError
from jaxdiff.train.run import RUN_FILE, check_meaning, read_record


def meaning(**model):
    config = default_config()
    config.model.update(model)
    return build.meaning(config)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"meaning": {}}'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        read_record(tmp_path)


def test_no_record_says_how_to_get_one(tmp_path):
    with pytest.raises(UsageError, match="no trained run in"):
        read_record(tmp_path)


def test_a_network_of_equal_shapes_and_another_function_is_refused(tmp_path):
    record = {"config": {}, "meaning": meaning(num_heads=1, dropout=0.1)}
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    check_meaning(meaning(num_heads=1, dropout=0.3), tmp_path / RUN_FILE)
    with pytest.raises(UsageError, match=r"model\.num_heads is 1 there and 4 here"):
        check_meaning(meaning(num_heads=4, dropout=0.1), tmp_path / RUN_FILE)
