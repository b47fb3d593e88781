"""Checkpoints: which are kept, that they come back bit for bit, and what is said of one that does not fit."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.train import TrainState
from jaxdiff.train.checkpoint import Checkpoints


def state(step=0, width=4, name="dense"):
    params = {name: {"kernel": jnp.arange(3.0 * width).reshape(3, width) / 7, "bias": jnp.full(width, step + 0.1)}}
    return TrainState.create(params, optax.adam(1e-3)).replace(step=jnp.int32(step))


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        checkpoints.save(step, state(step), eval_loss=loss)
    checkpoints.close()
    return tmp_path / "c"


def test_latest_two_and_the_best_are_kept(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.steps == [2, 4, 5]
    assert checkpoints.latest == 5
    assert checkpoints.best == 2


def test_restores_bit_for_bit(saved):
    for step in (None, 2):
        restored = Checkpoints(saved, read_only=True).restore(state(), step)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(step or 5)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (state(width=5), "dense/bias is (4,) there and (5,) here"),
        (state(name="conv"), "is missing there and"),
    ],
)
def test_another_models_checkpoint_is_refused_by_name(saved, like, words):
    with pytest.raises(UsageError) as error:
        Checkpoints(saved, read_only=True).restore(like)
    assert "of another model" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_ones_are_one_line(saved, tmp_path):
    with pytest.raises(UsageError, match="no checkpoint of step 3"):
        Checkpoints(saved, read_only=True).restore(state(), 3)
    with pytest.raises(UsageError, match="no checkpoint in"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_half_written_and_half_deleted_steps_are_cleaned_up(saved):
    (saved / "6.orbax-checkpoint-tmp").mkdir()
    assert not (saved / ".trash").exists()  # emptied as the run goes, or a long one fills the disk
    (saved / ".trash" / "1").mkdir(parents=True)
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest == 5
    assert not (saved / ".trash" / "1").exists()
    checkpoints.save(6, state(6))
    checkpoints.close()
    assert Checkpoints(saved, read_only=True).latest == 6


def test_a_damaged_checkpoint_is_one_line(saved):
    for file in (saved / "5" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UsageError, match="could not read checkpoint 5") as error:
        Checkpoints(saved, read_only=True).restore(state())
    assert "\n" not in str(error.value)


def test_saving_again_waits_until_old_steps_are_put_away(tmp_path, monkeypatch):
    """A slow disk: the next save comes while the last one's thread is still renaming into the trash."""

    def slow(move):
        def wrapper(src, dst, **kwargs):
            if ".trash" in str(dst):
                time.sleep(0.3)
            return move(src, dst, **kwargs)

        return wrapper

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, slow(getattr(os, name)))
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in range(1, 4):
        checkpoints.save(step, state(step))
        time.sleep(0.15)
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).steps == [3]
