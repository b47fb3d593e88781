"""Where weights lie: in one file of safetensors, in several with an index, or somewhere in a folder."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxdiff.convert.format import PICKLES, pickle_error, read_file, write_tensors
from jaxdiff.convert.json_files import read_json
from jaxdiff.convert.text import clean, shown
from jaxdiff.errors import UsageError

INDEX = ".safetensors.index.json"
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")


def weight_map(index: str | Path) -> dict[str, str]:
    """What an index says: in which of the files beside it each tensor is.

    Args:
        index: a `*.safetensors.index.json`.

    Returns:
        File names by tensor.

    Raises:
        UsageError: no such file, no index, or one that names other places.
    """
    index = Path(index)
    where = clean(str(index), 300)
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UsageError(f"{where} has no weight_map of tensor names to file names")
    for file in files.values():
        # An index names its neighbours; a path would lead anywhere.
        if Path(file).name != file or "\\" in file or "\0" in file:
            raise UsageError(f"{where} names the file {clean(ascii(file))}: only files beside it are read")
    return files


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    where, files = clean(str(path), 300), weight_map(path)
    tensors: dict[str, np.ndarray] = {}
    for file in dict.fromkeys(files.values()):
        if not (path.parent / file).is_file():
            raise UsageError(f"{where} names the file {clean(file)}, which is not there")
        part = read_file(path.parent / file)
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
    return _read_shards(path) if is_index(path) else read_file(path)


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
            raise pickle_error(path)
    raise UsageError(f"{where} has no weights: needed is {stem or '*'}.safetensors or its index")


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
