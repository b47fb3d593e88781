"""Every config builds, and takes two steps at reduced size on made-up images of its shape."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import build, data
from jaxdiff.train.loop import train

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SLOW = {  # the longest to compile
    "cifar10_iddpm_cosine": pytest.mark.slow
}


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=SLOW.get(p.stem, ())) for p in CONFIGS])
def test_two_steps(path, tmp_path, monkeypatch):
    config = load(path).get_config()
    build.model(config)  # at full size too
    config.data.image_size = min(config.data.image_size, 16)
    config.model.update({"channels": 8, "channel_mult": (1,), "num_res_blocks": 1})
    config.process.num_steps = 20
    config.train.update({"steps": 2, "batch_size": 8, "eval_every": 2, "sample_every": 2, "checkpoint_every": 2})
    config.sample.steps = 2
    rng, d = np.random.default_rng(0), config.data

    def made_up(config, split):
        images = rng.integers(0, 256, (16, d.image_size, d.image_size, d.channels), np.uint8)
        return data.InMemory(images, np.arange(16) % d.num_classes if d.num_classes else None, d.num_classes)

    monkeypatch.setattr(build, "source", made_up)
    assert train(build.run(config), tmp_path) == 0
    assert (tmp_path / "checkpoints" / "2").is_dir()
    assert list((tmp_path / "samples").glob("*.png"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_docstrings_say_what_they_must(path):
    text = load(path).__doc__
    for word in (f"jaxdiff train --config configs/{path.name} --workdir", "Hardware:", "Expected:"):
        assert word in text, f"{path.name}: {word!r} is missing"
