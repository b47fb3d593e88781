"""Checkpoints: which are kept, that they come back bit for bit, and what is said of one that does not fit."""

import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff import build, convert
from jaxdiff.commands.checkpoints import checkpoints as command
from jaxdiff.commands.export import export
from jaxdiff.config import default_config
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json
from jaxdiff.train import TrainState
from jaxdiff.train.checkpoint import Checkpoints


def state(step=0, width=4, name="dense"):
    params = {name: {"kernel": jnp.arange(3.0 * width).reshape(3, width) / 7, "bias": jnp.full(width, step + 0.1)}}
    return TrainState.create(params, optax.adam(1e-3)).replace(step=jnp.int32(step))


def save(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def same(restored, wanted):
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def poll(checkpoints):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        checkpoints.check()
        time.sleep(0.01)


def damage(folder, step):
    (folder / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")


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
    assert checkpoints.latest == checkpoints.find("latest") == 5
    assert checkpoints.best == checkpoints.find("best") == 2
    assert checkpoints.eval_losses == {2: 1.0, 4: None, 5: 4.0}


def test_the_best_is_kept_across_restarts_and_is_never_nan(saved):
    for step, loss in ((6, float("nan")), (7, 1.0), (8, 5.0), (9, None)):
        checkpoints = Checkpoints(saved)
        checkpoints.save(step, state(step), eval_loss=loss)
        checkpoints.close()
    assert Checkpoints(saved, read_only=True).steps == [7, 8, 9]  # of two equal ones the newer
    assert Checkpoints(saved, read_only=True).best == 7


def test_restores_bit_for_bit(saved):
    for step in (None, 2):
        same(Checkpoints(saved, read_only=True).restore(state(), step), state(step or 5))


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (state(width=5), "8 of another shape: params/dense/bias is (4,) there and (5,) here"),
        (state(name="conv"), "8 missing there: params/conv/bias, params/conv/kernel"),
        (state(name="conv"), "8 only there: params/dense/bias"),
        (state().replace(step=jnp.float32(0)), "1 of another dtype: step is int32 there and float32 here"),
        (state().replace(ema={}), "2 only there: ema/ema/dense/bias, ema/ema/dense/kernel"),
    ],
)
def test_another_models_checkpoint_is_refused_by_name(saved, like, words):
    with pytest.raises(UsageError) as error:
        Checkpoints(saved).restore(like)
    assert "of another model" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert Checkpoints(saved).latest == 5


def test_a_part_is_read_whatever_the_rest_is(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    like = jax.eval_shape(lambda: state().params)
    same(checkpoints.restore_part(like, "ema/ema"), state(5).params)
    same(checkpoints.restore_part(like, "params", 2), state(2).params)
    same(checkpoints.restore_part(like, "opt_state/0/mu"), state(5).opt_state[0].mu)
    same(checkpoints.restore_part(like["dense"]["bias"], "params/dense/bias"), state(5).params["dense"]["bias"])
    with pytest.raises(UsageError, match=r"unknown part of checkpoint 5 .* 'ema/emma': did you mean 'ema/ema'\?"):
        checkpoints.restore_part(like, "ema/emma")
    with pytest.raises(UsageError, match="of another model: 1 missing there: params/conv"):
        checkpoints.restore_part({**like, "conv": jax.ShapeDtypeStruct((), "float32")}, "params")


def test_only_the_part_is_read(saved):
    """What of the rest is damaged is not noticed, and does no harm."""
    record = saved / "5" / "record" / "record.json"
    like = state().params
    read = []

    def counted(self, path, **kwargs):
        read.append(list(kwargs["args"].item))
        return restore(self, path, **kwargs)

    from orbax.checkpoint import PyTreeCheckpointHandler as Handler

    restore, Handler.restore = Handler.restore, counted
    try:
        Checkpoints(saved, read_only=True).restore_part(like, "ema/ema")
    finally:
        Handler.restore = restore
    assert read == [["ema/ema/dense/bias", "ema/ema/dense/kernel"]]
    assert record.is_file()


def test_all_arrays_of_an_unknown_model(saved):
    arrays = Checkpoints(saved, read_only=True).arrays(4)
    same(arrays, {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                  for path, leaf in jax.tree_util.tree_leaves_with_path(state(4))})  # fmt: skip


def test_missing_ones_are_one_line(saved, tmp_path):
    checkpoints = Checkpoints(saved, read_only=True)
    for call in (lambda: checkpoints.restore(state(), 3), lambda: checkpoints.find("3"), lambda: checkpoints.arrays(3)):
        with pytest.raises(UsageError, match="no checkpoint of step 3"):
            call()
    with pytest.raises(UsageError, match="allowed is latest, best, or a step of"):
        checkpoints.find("newest")
    with pytest.raises(UsageError, match="no checkpoint in"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UsageError, match=r"no good checkpoint in .*: there is none"):
        Checkpoints(tmp_path / "new").restore(state())


def test_half_written_and_half_deleted_steps_are_cleaned_up(saved):
    (saved / "6.orbax-checkpoint-tmp").mkdir()
    assert not (saved / ".trash").exists()  # emptied as the run goes, or a long one fills the disk
    (saved / ".trash" / "1").mkdir(parents=True)
    assert Checkpoints(saved, read_only=True).latest == 5
    assert (saved / ".trash" / "1").exists()
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest == 5
    assert not (saved / ".trash" / "1").exists()
    checkpoints.save(6, state(6))
    checkpoints.close()
    assert Checkpoints(saved, read_only=True).latest == 6


def test_a_damaged_checkpoint_is_told_and_put_away(saved):
    """The newest good one is read; the damaged step can be saved again, and its old files are still there."""
    damage(saved, 5)
    (saved / "2" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": "x"}')  # of another step
    said = []
    checkpoints = Checkpoints(saved, say=said.append)
    same(checkpoints.restore(state()), state(4))
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint 5 in {saved} is damaged: ")
    assert said[0].endswith("; going back to step 4")
    assert "\n" not in said[0]
    assert checkpoints.steps == [2, 4]
    assert (saved / ".damaged" / "5" / "state").is_dir()
    checkpoints.save(5, state(5))
    checkpoints.close()
    same(Checkpoints(saved).restore(state(), 5), state(5))


def test_who_only_reads_moves_nothing(saved, capsys):
    damage(saved, 5)
    same(Checkpoints(saved, read_only=True).restore(state()), state(4))
    assert f"jaxdiff: checkpoint 5 in {saved} is damaged: " in capsys.readouterr().err
    assert Checkpoints(saved, read_only=True).latest == 5


def test_a_step_asked_for_by_number_does_not_fall_back(saved):
    damage(saved, 5)
    for call in (
        lambda c: c.restore(state(), 5),
        lambda c: c.restore_part(state().step, "step", 5),
        lambda c: c.arrays(5),
    ):
        with pytest.raises(UsageError, match=r"checkpoint 5 in .* is damaged") as error:
            call(Checkpoints(saved))
        assert "\n" not in str(error.value)
    assert Checkpoints(saved).latest == 5


def test_no_good_one_is_an_error_and_moves_nothing(saved):
    for step in (2, 4, 5):
        damage(saved, step)
    with pytest.raises(UsageError, match=r"no good checkpoint in .*: 5: .*; 4: .*; 2: ") as error:
        Checkpoints(saved).restore(state())
    assert "\n" not in str(error.value)
    assert Checkpoints(saved).steps == [2, 4, 5]


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_write_that_fails_is_told_at_the_next_check(tmp_path):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.check()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
    try:
        checkpoints.save(2, state(2))
        with pytest.raises(UsageError, match="could not write a checkpoint in") as error:
            poll(checkpoints)
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(error.value)
    same(Checkpoints(tmp_path).restore(state()), state(1))


@pytest.mark.parametrize("spec", [P(), P("data")], ids=["replicated", "sharded"])
def test_any_layout_to_any_other(tmp_path, spec):
    """Saved from 8 devices, read on one; and the other way round."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    places = {"bias": NamedSharding(mesh, spec), "kernel": NamedSharding(mesh, P(None, *spec))}
    laid = jax.device_put(state(3, width=8).params, {"dense": places})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, laid)
    checkpoints.wait()
    plain = jax.eval_shape(lambda: state(3, width=8).params)
    restored = checkpoints.restore(plain)
    same(restored, state(3, width=8).params)
    assert restored["dense"]["bias"].sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    back = checkpoints.restore(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), laid)
    )
    same(back, laid)
    assert jax.tree.map(lambda a: a.sharding, back) == jax.tree.map(lambda a: a.sharding, laid)


def test_the_command_lists_and_verifies(saved, capsys):
    assert command(saved) == command(saved.parent / "c", verify=True) == 0
    damage(saved, 4)
    assert command(saved, verify=True) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[0].isdecimal() and line[1] != "of"] == ["2", "4", "5"] * 3
    assert lines[1][-2:] == ["1", "best"]
    assert lines[3][-2:] == ["4", "latest"]
    assert [line[-1] for line in lines[5:8]] == ["good"] * 3
    assert "damaged:" in lines[11]
    assert lines[-1] == ["1", "of", "3", "damaged"]


def test_the_command_compares(tmp_path, capsys):
    run = Checkpoints(tmp_path)
    one = {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(3), "c": jnp.zeros(2), "e": jnp.array([jnp.nan, 0.0])}
    run.save(1, one)
    run.save(2, {"a": jnp.array([1.0, 2.5]), "b": jnp.zeros(4), "d": jnp.zeros(2), "e": one["e"]})
    run.close()
    assert command(tmp_path, compare="1,latest") == 0
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert rows["a"] == "[2] 0.5"
    assert rows["b"] == "- float32[3] and float32[4]"
    assert rows["c"] == "- only in the first"
    assert rows["d"] == "- only in the second"
    assert rows["e"] == "[2] equal"
    with pytest.raises(UsageError, match="two checkpoints are needed"):
        command(tmp_path, compare="1")


@pytest.mark.parametrize("ema", [True, False])
def test_an_export_is_the_runs_model(tmp_path, ema):
    config = default_config()
    config.model.update(channels=8, channel_mult=(1,))
    model = build.model(config)
    shapes = jax.eval_shape(lambda: build.init(config, model))
    params, average = (jax.tree.map(lambda a, value=value: jnp.full(a.shape, value), shapes) for value in (0.5, 1.5))
    write_json(tmp_path / "config.json", {"config": config.to_dict()})
    run = Checkpoints(tmp_path / "checkpoints")
    run.save(3, {"params": params, "ema": {"ema": average}, "anything": jnp.zeros(3)})
    run.close()
    assert export(tmp_path, tmp_path / "out", ema=ema) == 0
    made, read = convert.load(tmp_path / "out")
    same(read, average if ema else params)
    assert made == model
    with pytest.raises(UsageError, match="is there already"):
        export(tmp_path, tmp_path / "out")
