"""Exported samplers: the images of `generate`, drawn with jax and NumPy alone, in any batches; what is refused."""

import dataclasses
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxdiff import aot, grids, guidance, prediction, processes, samplers
from jaxdiff.commands import compile as command
from jaxdiff.config import default_config
from jaxdiff.errors import UsageError
from jaxdiff.model import Model
from jaxdiff.models.network import Network

pytestmark = pytest.mark.usefixtures("quick_compile")
SHAPE = (4, 4, 2)
LABEL = {"label": jax.ShapeDtypeStruct((), "int32")}
RECIPE = """
import sys
import jax, jax.export, numpy
path, seed, batch, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
file = numpy.load(path)
program = jax.export.deserialize(bytearray(file["program"].tobytes()))
params = [file[f"p{i}"] for i in range(len(file.files) - 2)]
cond = {"label": numpy.arange(batch, dtype="int32") % 3}
images = jax.jit(program.call)(params, numpy.uint32(seed), numpy.arange(batch, dtype="uint32"), cond)
numpy.save(out, images)
print(sorted({"jaxdiff", "flax", "optax", "orbax"} & set(sys.modules)))
"""


@pytest.fixture(scope="module", autouse=True)
def _batches_without_a_number():
    """A batch left open is traced with a symbol for its size, which is no `int` to the checker of annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Tiny(nn.Module):
    """A network with a convolution, a table of labels and time."""

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False, rngs=None):
        label = (cond or {}).get("label", jnp.full(x.shape[:1], 3))
        h = nn.Conv(8, (3, 3), name="conv_in")(x)
        h = h + (nn.Embed(4, 8, name="label")(label) + 1e-3 * t[:, None])[:, None, None, :]
        return nn.Conv(x.shape[-1], (3, 3), name="conv_out")(nn.tanh(h))


@pytest.fixture(scope="module")
def model():
    return Model(Network(Tiny()), processes.vp_sde(), prediction.EPS)


@pytest.fixture(scope="module")
def params(model):
    shapes = jax.eval_shape(model.apply.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def export(model, params):
    """A function: how to export -> (content, a function of seed, labels -> what `generate` draws)."""

    def make(name="ddpm", transforms=(), cond=LABEL, **options):
        what = {"sampler": samplers.make(name), "levels": grids.uniform(model.process, 3), "transforms": transforms}
        data = aot.export_sampler(model, params, shape=SHAPE, cond=cond, **what, **options)

        def generate(seed, num, cond=None):
            return np.asarray(samplers.generate(model, params, jax.random.key(seed), (num, *SHAPE), cond=cond, **what))

        return data, generate

    return make


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def labels(num):
    return {"label": np.arange(num, dtype=np.int32) % 3}


@pytest.fixture(scope="module")
def drawn(export):
    """A program for any batch, and the five images of seed 7."""
    data, generate = export()
    return aot.load_sampler(data), generate(7, 5, labels(5))


def test_the_file_draws_without_the_library(export, tmp_path):
    """The recipe in a process of its own; with guidance, which needs two evaluations of the network."""
    data, generate = export("heun", transforms=(guidance.classifier_free(2.0, {"label": 3}),))
    path = aot.save_sampler(tmp_path / "new" / "sampler.npz", data)
    arguments = [str(path), "11", "4", str(tmp_path / "images.npy")]
    done = subprocess.run([sys.executable, "-c", RECIPE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert close(np.load(tmp_path / "images.npy"), generate(11, 4, labels(4)))
    assert [entry.name for entry in path.parent.iterdir()] == ["sampler.npz"]


def test_the_recipe_is_the_documented_one():
    lines = [line for line in RECIPE.splitlines() if line.startswith(("file", "program", "params", "images"))]
    assert len(lines) == 4
    assert all(line in aot.__doc__ for line in lines)


def test_any_batches_draw_the_same_images(drawn):
    program, want = drawn
    assert program.about["batch"] is None
    assert close(program(7, 5, labels(5)), want)
    assert close(program(7, 5, labels(5), batch=2), want)
    later = program(7, 2, {"label": labels(5)["label"][3:]}, first=3)
    assert close(later, want[3:])
    assert np.abs(program(8, 5, labels(5)) - want).max() > 0.1


def test_a_fixed_batch_draws_any_number(export, drawn):
    program = aot.load_sampler(export(batch=3)[0])
    assert program.about["batch"] == 3
    for num in (2, 5):
        assert close(program(7, num, labels(num)), drawn[1][:num])


def test_the_largest_seed_and_no_conditions(export):
    data, generate = export("ddim", cond=None)
    assert close(aot.load_sampler(data)(2**32 - 1, 2), generate(2**32 - 1, 2))


def test_parameters_are_arguments_of_the_program(drawn, params):
    """In the file as arrays that anybody can read, not folded into the program."""
    program, _ = drawn
    stored = sorted(array.shape for array in program.params)
    assert stored == sorted(leaf.shape for leaf in jax.tree.leaves(params))
    twice = dataclasses.replace(program, params=tuple(2 * array for array in program.params))
    assert np.abs(twice(7, 1, labels(1)) - drawn[1][:1]).max() > 0.1


def test_other_platforms(export):
    data, _ = export(platforms=("cuda", "tpu"))
    program = aot.load_sampler(data)
    assert program.about["platforms"] == ["cuda", "tpu"]
    with pytest.raises(UsageError, match=r"runs on cpu.*\['cuda', 'tpu'\]"):
        program(0, 1, labels(1))
    both = aot.load_sampler(export(platforms=("cpu", "tpu"))[0])
    assert both(0, 1, labels(1)).shape == (1, *SHAPE)


@pytest.mark.parametrize("name", samplers.REGISTRY)
def test_every_sampler_exports(name):
    """With a network of no cost, for a machine that is not here, and any batch."""

    def network(params, x, t, cond, *, train=False, rngs=None):
        return params * x

    simple = Model(network, processes.ddpm_linear(), prediction.EPS, time_input=lambda level: level.t)
    data = aot.export_sampler(
        simple, jnp.float32(0.1), sampler=samplers.make(name), levels=grids.uniform(simple.process, 6), shape=(3,),
        platforms=("tpu",),
    )  # fmt: skip
    assert aot.load_sampler(data).about["steps"] == 6


@pytest.mark.parametrize(("options", "message"), [
    ({"platforms": ("gpu",)}, "unknown platform 'gpu'.*cpu, cuda, rocm, tpu"),
    ({"batch": 0}, "batch=0: allowed is 1 or more, or None"),
])  # fmt: skip
def test_exports_that_cannot_work(export, options, message):
    with pytest.raises(UsageError, match=message):
        export(**options)


def test_levels_of_another_process_are_refused(model, params):
    levels = grids.uniform(processes.edm(), 3)
    with pytest.raises(UsageError, match="not of the denoiser's process"):
        aot.export_sampler(model, params, sampler=samplers.make("ddim"), levels=levels, shape=SHAPE, cond=LABEL)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    levels = grids.uniform(model.process, 3)
    with pytest.raises(UsageError, match="bfloat16"):
        aot.export_sampler(model, half, sampler=samplers.make("ddim"), levels=levels, shape=SHAPE, cond=LABEL)


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((0, 2), {}, r"cond has the entries \[\]: this sampler takes \['label'\]"),
    ((0, 2, {"lable": np.zeros(2, np.int32)}), {}, "lable"),
    ((0, 2, {"label": np.zeros(3, np.int32)}), {}, r"int32 \[3\]: this sampler takes int32 \[2\]"),
    ((0, 2, {"label": np.zeros(2)}), {}, r"float64 \[2\]"),
    ((-1, 2, labels(2)), {}, "seed=-1"),
    ((2**32, 2, labels(2)), {}, "seed=4294967296"),
    ((0, 0, labels(1)), {}, "num=0"),
    ((0, 1, labels(1)), {"first": -1}, "first=-1"),
    ((0, 1, labels(1)), {"first": 2**32 - 1}, "first=4294967295"),
    ((0, 1, labels(1)), {"batch": 0}, "batch=0"),
])  # fmt: skip
def test_calls_that_cannot_work(drawn, arguments, options, message):
    with pytest.raises(UsageError, match=message):
        drawn[0](*arguments, **options)


def test_a_program_of_a_later_jax(drawn):
    """The failure is said in a line; the same failure of a program of this jax is a defect, and keeps its own."""

    def fail(*_):
        raise ValueError("cannot deserialise")

    for version, error, message in (("99.0.1", UsageError, r"with jax 99.0.1, which jax .* cannot"),
                                    (jax.__version__, ValueError, "cannot deserialise")):  # fmt: skip
        program = dataclasses.replace(drawn[0], about={**drawn[0].about, "jax": version})
        program.__dict__["_call"] = fail
        with pytest.raises(error, match=message):
            program(0, 1, labels(1))


def test_files_that_are_none(export, tmp_path):
    data, _ = export()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(data[: len(data) // 2])
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros(3))
    for path in (cut, other):
        with pytest.raises(UsageError, match=f"{path.name}: this is no exported sampler"):
            aot.load_sampler(path)
    with pytest.raises(UsageError, match=r"none\.npz: there is no such file"):
        aot.load_sampler(tmp_path / "none.npz")


@pytest.fixture
def run(model, params, monkeypatch):
    """A run with the small model, as the command finds it."""

    def load(workdir, checkpoint):
        config = default_config()
        config.data.update(image_size=4, channels=2, num_classes=3)
        config.sample.update(sampler="ddpm", steps=50)
        return config, model, params

    monkeypatch.setattr(command, "load_run", load)


@pytest.mark.usefixtures("run")
def test_the_command(export, tmp_path, capsys):
    """What it prints of the file runs as it is printed, and draws what the run's sampler draws."""
    out = tmp_path / "s.npz"
    assert command.compile_run(tmp_path, out, overrides={"sampler": "ddim", "steps": 3, "guidance": 1.0}) == 0
    said = capsys.readouterr().out
    assert "3 steps" in said
    assert "['cpu']" in said
    names: dict = {}
    exec("\n".join(line.strip() for line in said.split("(pip install jax flatbuffers):\n")[1].splitlines()), names)
    _, generate = export("ddim")
    assert close(np.asarray(names["images"])[:2], generate(0, 2, {"label": np.zeros(2, np.int32)}))


@pytest.mark.usefixtures("run")
def test_commands_that_cannot_work(tmp_path):
    for given, message in (({"batch_size": -1}, "batch_size=-1"), ({"platforms": ["gpu"]}, "unknown platform 'gpu'")):
        with pytest.raises(UsageError, match=message):
            command.compile_run(tmp_path, tmp_path / "s.npz", **given)
    with pytest.raises(UsageError, match="is a folder"):
        command.compile_run(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
