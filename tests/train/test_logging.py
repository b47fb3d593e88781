"""What a run writes, read back by other means: a strict JSON reader, the event file's own frames, a fake W&B."""

import gzip
import io
import json
import math
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jaxdiff.errors import UsageError
from jaxdiff.train.logging import Logger, Progress, read_metrics
from jaxdiff.train.profile import span, trace

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
MOVIE = np.stack([np.zeros_like(PICTURE), np.full_like(PICTURE, 255), np.zeros_like(PICTURE)])


def events(workdir):
    """All events of a run, from the TFRecord frames: length, its checksum, data, its checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def strict(text):
    """JSON as the standard has it, without NaN."""

    def refuse(name):
        raise ValueError(name)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_numbers_that_are_none_are_readable_json_and_come_back(tmp_path):
    logger = Logger(tmp_path, 0)
    logger.scalars(1, {"loss": math.nan, "norm": math.inf, "low": -math.inf, "rate": 0.1})
    logger.close()
    lines = strict((tmp_path / "metrics.jsonl").read_text())
    assert lines == [{"step": 1, "loss": "NaN", "norm": "Infinity", "low": "-Infinity", "rate": 0.1}]
    ((step, values),) = read_metrics(tmp_path / "metrics.jsonl")
    assert (step, values["norm"], values["low"], values["rate"]) == (1, math.inf, -math.inf, 0.1)
    assert math.isnan(values["loss"])


def test_going_on_drops_later_steps_and_what_a_kill_tore(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "loss": 0.30000000000000004}\n{"step": 1, "eval_loss": 0.25}\n{"step": 2, "loss": "NaN"}\n'
    path.write_text(kept + '{"step": 3, "loss": 1.0}\n{"step": 2, "lo')
    logger = Logger(tmp_path, 2)
    assert path.read_text() == kept
    logger.scalars(3, {"loss": 2.0})
    logger.close()
    assert path.read_text() == kept + '{"step": 3, "loss": 2.0}\n'
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [3]  # TensorBoard hides what it has from there on


@pytest.mark.parametrize("line", ["[1]", "7", '{"loss": 1}', '{"step": "NaN"}', '{"step": 2, "loss": [1]}', "\x00"])
def test_a_line_that_is_no_record_ends_the_file(tmp_path, line):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 1}\n' + line + '\n{"step": 3, "loss": 1}\n')
    assert read_metrics(tmp_path / "m.jsonl") == [(1, {"loss": 1.0})]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_tensorboard_gets_scalars_grids_and_moving_pictures(tmp_path):
    logger = Logger(tmp_path, 0)
    logger.scalars(5, {"loss": 0.5, "bad": math.nan})
    logger.picture(6, "samples", PICTURE)
    logger.picture(7, "grey", PICTURE[..., :1])
    logger.picture(8, "way", MOVIE)
    logger.close()
    values = {v.tag: (event.step, v) for event in events(tmp_path) for v in event.summary.value}
    assert values["loss"][0] == 5
    assert values["loss"][1].simple_value == 0.5
    assert math.isnan(values["bad"][1].simple_value)
    for name, step, shape in (("samples", 6, (4, 4, 3)), ("grey", 7, (4, 4, 1)), ("way", 8, (4, 4, 3))):
        at, value = values[name]
        assert (at, value.image.height, value.image.width, value.image.colorspace) == (step, *shape)
    shown = Image.open(io.BytesIO(values["samples"][1].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown), PICTURE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / "samples_0000006.png")), PICTURE)
    for source in (io.BytesIO(values["way"][1].image.encoded_image_string), tmp_path / "samples" / "way_0000008.gif"):
        moving = Image.open(source)
        assert (moving.format, moving.n_frames) == ("GIF", 3)
        brightness = []
        for i in range(3):
            moving.seek(i)
            brightness.append(np.asarray(moving.convert("RGB")).mean())
        assert brightness == [0, 255, 0]


def test_results_of_evaluations_are_flattened_by_name(tmp_path):
    logger = Logger(tmp_path, 0)
    parts = {"eps/1.00": np.float32(0.5), "plot": PICTURE, "deeper": {"x": 3}}
    logger.results(9, {"fd": jnp.float32(2.0), "levels": parts, "way": MOVIE})
    logger.close()
    lines = strict((tmp_path / "metrics.jsonl").read_text())
    assert lines == [{"step": 9, "fd": 2.0, "levels/eps/1.00": 0.5, "levels/deeper/x": 3.0}]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["levels_plot_0000009.png", "way_0000009.gif"]


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = Logger(tmp_path, 0, wandb="project")
    logger.scalars(1, {"loss": 1.0})
    logger.picture(1, "samples", PICTURE)
    logger.results(1, {"way": MOVIE, "fd": 1.0})
    logger.close()
    with Progress(0, 10, 4) as progress, trace(tmp_path, 1, 1) as run:
        progress.report(1, 0.5, 2.0)
        progress.say("hello")
        assert run(1, max, 1, 2) == 2
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


class Recorder:
    """Stands for `wandb`: what it was told, and its rule that steps only grow."""

    class Error(Exception): ...

    def __init__(self, step=0, refuse=""):
        self.step, self.refuse, self.logged, self.given, self.finished = step, refuse, [], {}, False

    def init(self, **given):
        if self.refuse:
            raise self.Error(self.refuse)
        self.given = given
        return self

    def log(self, values, step):
        assert step >= self.step
        self.step = step
        self.logged.append((step, values))

    def finish(self):
        self.finished = True

    @staticmethod
    def Image(image):  # noqa: N802
        return "image", np.asarray(image)

    @staticmethod
    def Video(file, format):  # noqa: N802
        return "video", format, Image.open(file).n_frames


def start(monkeypatch, workdir, recorder, step=0):
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    return Logger(workdir, step, wandb="digits", config={"seed": 0})


def test_weights_and_biases_gets_the_same_and_goes_on_as_one_run(tmp_path, monkeypatch):
    first = Recorder()
    logger = start(monkeypatch, tmp_path / "run", first)
    logger.scalars(1, {"loss": 1.0})
    logger.picture(1, "samples", PICTURE)
    logger.picture(2, "way", MOVIE)
    logger.close()
    assert first.finished
    assert first.given["project"] == "digits"
    assert first.given["name"] == "run"
    assert first.given["config"] == {"seed": 0}
    (_, scalars), (_, grid), (at, movie) = first.logged
    assert (scalars, at, movie) == ({"loss": 1.0}, 2, {"way": ("video", "gif", 3)})
    np.testing.assert_array_equal(grid["samples"][1], PICTURE)

    again = Recorder(step=5)  # that run got to step 4 before it was killed
    logger = start(monkeypatch, tmp_path / "run", again, step=2)
    for step in (3, 4, 5, 6):
        logger.scalars(step, {"loss": float(step)})
    logger.close()
    assert (again.given["id"], again.given["resume"]) == (first.given["id"], "allow")
    assert [step for step, _ in again.logged] == [5, 6]
    assert [step for step, _ in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 3, 4, 5, 6]


def test_weights_and_biases_is_imported_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())  # any use of it would fail
    Logger(tmp_path, 0).close()


@pytest.mark.parametrize(
    ("module", "said"),
    [(None, "wandb='digits': the package is not installed: pip install wandb"), ("no key", "wandb='digits': no key")],
)
def test_weights_and_biases_that_cannot_be_used_is_one_line_before_anything_is_written(
    tmp_path, monkeypatch, module, said
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    with pytest.raises(UsageError) as caught:
        start(monkeypatch, tmp_path, module and Recorder(refuse=module + "\n\n"))
    assert str(caught.value) == said
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 7, "loss": 1.0}\n'


def test_a_profile_holds_the_steps_asked_for(tmp_path):
    double = jax.jit(lambda x: 2 * x)
    with trace(tmp_path, 3, 4) as run:
        answers = [float(run(step, double, jnp.float32(step))) for step in range(1, 7)]
        with trace(tmp_path / "other", 1, 1) as another:  # the first has ended, or this could not begin
            another(1, double, jnp.float32(0))
    assert answers == [2, 4, 6, 8, 10, 12]
    (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    told = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = {int(event["args"]["step_num"]) for event in told if "step_num" in event.get("args", {})}
    assert steps == {3, 4}


def test_a_run_that_fails_while_profiled_leaves_a_profile_and_none_running(tmp_path):
    def fail():
        raise RuntimeError("out of luck")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"), trace(tmp_path, 1, 9) as run:  # noqa: PT012
            run(1, max, 1, 2)
            run(2, fail)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_profile_unless_asked_for(tmp_path):
    with trace(tmp_path, 0, 0) as run:
        assert run(1, max, 3, 4) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "10", "20:10", "0:5", "a:b", "1:2:3", "-1:5", "1.5:2"])
def test_spans_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="FIRST:LAST"):
        span(text)
