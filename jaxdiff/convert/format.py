"""One file of tensors: safetensors, read and written without any other package. Pickles are refused.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxdiff.convert.json_files import MOST_BYTES, parse_json
from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
        "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8",
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
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


def pickle_error(path: Path) -> UsageError:
    """The error for a pickle: why it is not opened, and how to turn it into safetensors."""
    return UsageError(
        f"{clean(str(path), 300)} is a pickle, and opening one runs whatever is in it: turn it into safetensors where "
        "PyTorch is installed (import torch, safetensors.torch as st; st.save_file({k: v.clone() for k, v in "
        "torch.load(FILE, map_location='cpu', weights_only=True).items()}, 'FILE.safetensors')), see docs/convert.md"
    )


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


def _header(path: Path, file: BinaryIO, size: int) -> tuple[Any, int]:
    """The JSON of (1) and its length; everything else that people have under this name is refused."""
    where = clean(str(path), 300)
    start = file.read(32)
    # By content where it tells, else by name: the oldest pickles begin with any letter.
    json_follows = start[8:9] == b"{"
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\1\2\3\4\5" and not json_follows):
        raise pickle_error(path)
    for magic, what in _OTHERS.items():
        if start.startswith(magic) and not json_follows:
            raise UsageError(f"{where} is {what}")
    if path.suffix.lower() in PICKLES and not json_follows:
        raise pickle_error(path)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or not json_follows:
        raise UsageError(f"{where} is not a safetensors file ({size} bytes)")
    if length > min(size - 8, MOST_BYTES):
        raise UsageError(
            f"{where} is cut short or no safetensors file: its header would have {length} bytes, the file has "
            f"{size} and at most {MOST_BYTES} are allowed"
        )
    file.seek(8)
    return parse_json(file.read(length), f"{where}: the header"), length


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file. See `jaxdiff.convert.files.read_tensors` for the arguments."""
    where, size = clean(str(path), 300), path.stat().st_size
    with path.open("rb") as file:
        header, length = _header(path, file, size)
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
