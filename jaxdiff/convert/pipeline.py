"""A folder of diffusers: a network (config.json beside its weights), or a pipeline of parts, each in its own folder."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.convert.files import INDEX, replace_tensors, weight_map
from jaxdiff.convert.json_files import read_json
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
PARTS = ("unet", "transformer")
_PART = re.compile(rf"{WEIGHTS}-\d+-of-\d+\.safetensors")
_PIPELINES = {
    ("unet", "DDPMScheduler"): "DDPMPipeline",
    ("unet", "DDIMScheduler"): "DDIMPipeline",
    ("unet", "ScoreSdeVeScheduler"): "ScoreSdeVePipeline",
}


def network_folder(path: str | Path) -> Path | None:
    """The network's folder in a folder of diffusers.

    Args:
        path: the network's own folder, or a pipeline's.

    Returns:
        The folder with config.json; None where there is none.
    """
    path = Path(path)
    return next((folder for folder in (path, *(path / part for part in PARTS)) if (folder / CONFIG).is_file()), None)


def read_scheduler(network: str | Path) -> dict[str, Any] | None:
    """The scheduler_config.json that goes with a network: beside it, or in the pipeline around it.

    Args:
        network: the network's folder.

    Returns:
        Its content, or None.

    Raises:
        UsageError: if it is not JSON.
    """
    network = Path(network).resolve()
    places = [network / SCHEDULER, network / "scheduler" / SCHEDULER]
    if network.name in PARTS:
        places.append(network.parent / "scheduler" / SCHEDULER)
    return next((read_json(place) for place in places if place.is_file()), None)


def _weights(folder: Path) -> list[Path]:
    """The weights in a network's folder by the names of this format: one file, and the parts that an index names."""
    try:
        named = set(weight_map(folder / (WEIGHTS + INDEX)).values())
    except UsageError:  # there is none, or it says nothing
        named = set()
    # An index may be of anyone's making: nothing that has not a part's name is removed on its word.
    parts = sorted(name for name in named if _PART.fullmatch(name))
    whole = [f"{WEIGHTS}.safetensors"] if _is_network(folder) else []
    return [folder / name for name in (*whole, *parts)]


def _is_network(folder: Path) -> bool:
    """Whether its config.json is a network's, and not of another program that uses the name."""
    try:
        return "_class_name" in read_json(folder / CONFIG)
    except (UsageError, OSError):
        return False


def write_pipeline(
    path: str | Path,
    part: str,
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    stale: Sequence[Path] = (),
) -> Path:
    """Write a folder as diffusers reads it: the network, its scheduler, and model_index.json for a known pipeline.

    Those pipelines give the network no labels or the like, so one that takes them gets no model_index.json.

    What lay there of a model in this format is removed: what describes it before the new weights take their place, its
    weights after.

    Args:
        path: the folder, made if missing.
        part: "unet" or "transformer".
        config: the network's config.json, with "_class_name".
        scheduler: scheduler_config.json, with "_class_name".
        tensors: the network's weights, by diffusers' names.
        stale: more files to remove, which describe another model there.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    json.dumps([config, scheduler])  # what cannot be written shows before anything is removed
    # What is read in place of the files written here: an index comes before them in diffusers, a scheduler beside the
    # network before the pipeline's in `read_scheduler`.
    folders = (path, *(path / name for name in PARTS))
    old = [folder / name for folder in folders for name in (SCHEDULER, WEIGHTS + INDEX)]
    old += [folder / CONFIG for folder in folders if _is_network(folder)]
    old += [path / PIPELINE, path / part / "scheduler" / SCHEDULER, *stale]
    new = path / part / f"{WEIGHTS}.safetensors"
    weights = [file for folder in folders for file in _weights(folder) if file != new]
    replace_tensors(new, tensors, old, {"format": "pt"})
    for file in weights:
        file.unlink(missing_ok=True)
    # config.json is written last: a folder that has it is whole.
    write_json(path / "scheduler" / SCHEDULER, scheduler)
    pipeline = _PIPELINES.get((part, scheduler["_class_name"]))
    if pipeline and config.get("num_class_embeds") is None and config.get("class_embed_type") is None:
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], part: ["diffusers", config["_class_name"]]}
        write_json(path / PIPELINE, {"_class_name": pipeline, **parts})
    write_json(path / part / CONFIG, config)
    return path
