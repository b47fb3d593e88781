"""Files of tensors: safetensors, read and written without any other package. Pickles are refused.

A safetensors file is

    n (8 bytes, unsigned, little-endian) | n bytes of JSON | data                            (1)

and its JSON names each tensor's type, shape and place, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
with offsets counted from the start of the data, which the tensors fill without gap or overlap. A file comes from
anywhere, so every number in it is held against (1) before it is used: what lies is refused in one line. A pickle is
a program, and opening one runs it; the line that refuses one says how to turn it into safetensors.

The `safetensors` package's NumPy functions do not know bfloat16, hence a reader of our own.

Reference: Hugging Face, safetensors, README, section "Format".
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdiff.convert.table import clean, shown
from jaxdiff.errors import UsageError
from jaxdiff.files import write_json, write_whole

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
        "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8",
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip

INDEX = ".safetensors.index.json"
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_MOST_HEADER = 100_000_000  # bytes, as in the reference implementation
_MOST_AXES = 32
_MOST_ITEMS = 2**48

# The first bytes of what people have under the wrong name.
_OTHERS = {
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'",
    b"<!DOCTYPE": "a web page, not the file it links to",
    b"<html": "a web page, not the file it links to",
}


def _advice(path: Path) -> UsageError:
    return UsageError(
        f"{clean(str(path), 300)} is a pickle, and opening one runs whatever is in it: turn it into safetensors where "
        "PyTorch is installed (import torch, safetensors.torch as st; st.save_file({k: v.clone() for k, v in "
        "torch.load(FILE, map_location='cpu', weights_only=True).items()}, 'FILE.safetensors')), see docs/convert.md"
    )


def _json(text: bytes, where: str) -> Any:
    """JSON in which no key is given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise UsageError(f"{where}: '{clean(twice)}' is given twice")
        return made

    try:
        return json.loads(text.decode(), object_pairs_hook=unique)
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {clean(str(error))}") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_ITEMS


def _place(name: str, entry: Any, where: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, begin and end of a tensor, held against each other."""
    what = f"{where}: tensor '{clean(name)}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UsageError(f"{what} needs dtype, shape, data_offsets and nothing else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UsageError(f"{what} has dtype {clean(str(kind))}: allowed are {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) <= _MOST_AXES and all(map(_whole, shape))):
        raise UsageError(f"{what} has shape {clean(str(shape))}: allowed are up to {_MOST_AXES} whole numbers")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_whole, offsets))):
        raise UsageError(f"{what} has data_offsets {clean(str(offsets))}: needed are two whole numbers")
    size = math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != size:
        raise UsageError(f"{what} is {size} bytes by dtype and shape, {offsets[1] - offsets[0]} by its data_offsets")
    # NumPy makes no empty array either whose other axes do not fit in 63 bits.
    if math.prod(max(extent, 1) for extent in shape) >= _MOST_ITEMS:
        raise UsageError(f"{what} has shape {clean(str(shape))}: allowed are fewer than 2^48 numbers, zeros taken as 1")
    return DTYPES[kind], tuple(shape), offsets[0], offsets[1]


def _read_one(path: Path) -> dict[str, np.ndarray]:
    where = clean(str(path), 300)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        # By content where it tells, else by name: the oldest pickles begin with any letter.
        json_follows = start[8:9] == b"{"
        if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\1\2\3\4\5" and not json_follows):
            raise _advice(path)
        for magic, what in _OTHERS.items():
            if start.startswith(magic) and not json_follows:
                raise UsageError(f"{where} is {what}")
        if path.suffix.lower() in PICKLES and not json_follows:
            raise _advice(path)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or not json_follows:
            raise UsageError(f"{where} is not a safetensors file ({size} bytes)")
        if length > min(size - 8, _MOST_HEADER):
            raise UsageError(
                f"{where} is cut short or no safetensors file: its header would have {length} bytes, the file has "
                f"{size} and at most {_MOST_HEADER} are allowed"
            )
        file.seek(8)
        text = file.read(length)
    header = _json(text, f"{where}: the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UsageError(f"{where}: __metadata__ must be names with text")
    places = {name: _place(name, entry, where) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise UsageError(f"{where}: tensor '{clean(name)}' begins at byte {begin} of the data, expected {end}")
        end = stop
    if 8 + length + end != size:
        raise UsageError(f"{where} is {'cut short' if 8 + length + end > size else 'too long'}: it has {size} bytes, "
                         f"its header speaks of {8 + length + end}")  # fmt: skip
    # A window on the file: a tensor is read when it is looked at.
    data = np.memmap(path, np.uint8, "r")[8 + length :]
    return {n: np.asarray(data[a:b]).view(kind).reshape(shape) for n, (kind, shape, a, b) in places.items()}


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    where = clean(str(path), 300)
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UsageError(f"{where} has no weight_map of tensor names to file names")
    tensors: dict[str, np.ndarray] = {}
    for file in dict.fromkeys(files.values()):
        # An index names its neighbours; a path would lead anywhere.
        if Path(file).name != file or "\\" in file or "\0" in file:
            raise UsageError(f"{where} names the file {clean(ascii(file))}: only files beside it are read")
        if not (path.parent / file).is_file():
            raise UsageError(f"{where} names the file {clean(file)}, which is not there")
        part = _read_one(path.parent / file)
        wrong = [name for name in part if files.get(name) != file]
        wrong += [name for name, place in files.items() if place == file and name not in part]
        if wrong:
            raise UsageError(f"{where} and {clean(file)} disagree about {shown(wrong)}")
        tensors |= part
    return tensors


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of all the files of a `*.safetensors.index.json`.

    Args:
        path: the file or the index.

    Returns:
        Arrays by name, in the file's own types (bfloat16 and float8 as of ml_dtypes): read-only windows on the file,
        whose values are read when they are looked at. The file must not change meanwhile.

    Raises:
        UsageError: no such file; a pickle, with the advice; anything in the file that does not fit.

    Examples:
        >>> import tempfile
        >>> path = write_tensors(tempfile.mkdtemp() + "/a.safetensors", {"w": np.ones((2, 3), np.float32)})
        >>> read_tensors(path)["w"].shape
        (2, 3)

    Reference: Hugging Face, safetensors, README, section "Format".
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{clean(str(path), 300)}: there is no such file")
    return _read_shards(path) if is_index(path) else _read_one(path)


def is_index(path: str | Path) -> bool:
    """Whether a path is, by its name, the index of a model in several files.

    Examples:
        >>> is_index("diffusion_pytorch_model.safetensors.index.json")
        True
    """
    return _INDEX.search(Path(path).name) is not None


def weights_file(folder: str | Path, stem: str | None = None) -> Path:
    """The one file of weights in a folder, or the index of several.

    `STEM.safetensors` comes first, then its index, then the only variant (`STEM.fp16.safetensors`).

    Args:
        folder: where to look.
        stem: the name without endings; None takes whatever is alone in the folder.

    Returns:
        A path for `read_tensors`.

    Raises:
        UsageError: none (a pickle in its place gets the advice), or several to choose from.
    """
    folder = Path(folder)
    for ending in (".safetensors", INDEX):
        if stem and (folder / (stem + ending)).is_file():
            return folder / (stem + ending)
    found = sorted(
        path
        for path in folder.iterdir()
        if (path.suffix == ".safetensors" and not _SHARD.search(path.name)) or is_index(path)
        if stem is None or path.name.startswith(f"{stem}.")
    )
    if len(found) == 1:
        return found[0]
    where = clean(str(folder), 300)
    if found:
        raise UsageError(f"{where} has several files of weights, {shown([p.name for p in found])}: give one of them")
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and (stem is None or path.name.startswith(f"{stem}.")):
            raise _advice(path)
    raise UsageError(f"{where} has no weights: needed is {stem or '*'}.safetensors or its index")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds a dict.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        UsageError: no such file, not JSON, a key given twice, or not a dict.
    """
    path = Path(path)
    where = clean(str(path), 300)
    if not path.is_file():
        raise UsageError(f"{where}: there is no such file")
    if path.stat().st_size > _MOST_HEADER:
        raise UsageError(f"{where} has {path.stat().st_size} bytes: at most {_MOST_HEADER} are allowed")
    value = _json(path.read_bytes(), where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is a {type(value).__name__}: needed is a dict")
    return value


def tuples(value: Any) -> Any:
    """A value of JSON with its sequences as tuples: the fields of a network must be hashable.

    Args:
        value: what `json.loads` gave; anything.

    Returns:
        The value, and dicts in it, made anew.

    Examples:
        >>> tuples({"channel_mult": [1, [2]]})
        {'channel_mult': (1, (2,))}
    """
    if isinstance(value, list | tuple):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file, whole: under a temporary name, then renamed.

    Args:
        path: where.
        tensors: arrays by name, of a type in `DTYPES`.
        metadata: remarks for the header. Other projects' readers ask for {"format": "pt"}.

    Returns:
        The path.

    Raises:
        UsageError: for a type or name that the format lacks.
        OSError: if it cannot be written; nothing is left behind.

    Examples:
        >>> import tempfile
        >>> write_tensors(tempfile.mkdtemp() + "/a.safetensors", {"w": np.zeros(2, np.float32)}).stat().st_size
        72
    """
    kinds = {kind: name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[Any] = []
    end = 0
    # Wide types first, so that every tensor begins at a multiple of its own width.
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        array = np.asarray(tensors[name])
        kind = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        if kind not in kinds or name == "__metadata__":
            raise UsageError(f"tensor '{clean(name)}' of type {array.dtype} cannot be written to safetensors")
        array = np.ascontiguousarray(array, kind)
        shape = list(np.shape(tensors[name]))  # ascontiguousarray makes [1] of a scalar
        header[name] = {"dtype": kinds[kind], "shape": shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
        parts.append(array.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return write_whole(path, b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def replace_tensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    stale: Iterable[Path],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """`write_tensors` where a model may lie already: what describes that goes once the new tensors are on the disk.

    Args:
        path: where.
        tensors: as of `write_tensors`.
        stale: files to remove, there or not.
        metadata: as of `write_tensors`.

    Returns:
        The path.

    Raises:
        UsageError: as `write_tensors`; nothing is removed then.
        OSError: if it cannot be written; nothing is removed while the new tensors are not whole.

    Examples:
        >>> import tempfile
        >>> old = write_tensors(tempfile.mkdtemp() + "/a.safetensors", {"w": np.zeros(2, np.float32)})
        >>> replace_tensors(old.with_name("b.safetensors"), {"w": np.zeros(2, np.float32)}, [old]).name, old.exists()
        ('b.safetensors', False)
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}")  # no name that is read as weights
    try:
        write_tensors(new, tensors, metadata)
        for file in stale:
            file.unlink(missing_ok=True)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


# A folder of diffusers is a network (config.json beside its weights) or a pipeline of parts, each in its own folder.
CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
PARTS = ("unet", "transformer")
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
    # What is read in place of the files written here: an index comes before them in diffusers, a scheduler beside the
    # network before the pipeline's in `read_scheduler`.
    folders = (path, *(path / name for name in PARTS))
    old = [folder / name for folder in folders for name in (CONFIG, SCHEDULER, WEIGHTS + INDEX)]
    old += [path / PIPELINE, path / part / "scheduler" / SCHEDULER, *stale]
    replace_tensors(path / part / f"{WEIGHTS}.safetensors", tensors, old, {"format": "pt"})
    # config.json is written last: a folder that has it is whole.
    write_json(path / "scheduler" / SCHEDULER, scheduler)
    pipeline = _PIPELINES.get((part, scheduler["_class_name"]))
    if pipeline and config.get("num_class_embeds") is None and config.get("class_embed_type") is None:
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], part: ["diffusers", config["_class_name"]]}
        write_json(path / PIPELINE, {"_class_name": pipeline, **parts})
    write_json(path / part / CONFIG, config)
    return path
