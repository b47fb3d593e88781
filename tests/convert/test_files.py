"""Files of tensors: the format against its reference implementation, and hostile files, each refused in one line."""

import json
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxdiff.convert.files import is_index, read_tensors, weights_file
from jaxdiff.convert.format import write_tensors
from jaxdiff.errors import UsageError

KINDS = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, np.bool_]


def some(kind, *shape):
    return (10 * np.random.RandomState(0).normal(size=shape)).astype(kind)


TENSORS = {
    **{np.dtype(kind).name: some(kind, 3, 5) for kind in KINDS},
    "scalar": np.asarray(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "naïve/名前": some(np.float32, 7),
}


def same(got, want):
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        np.testing.assert_array_equal(got[name], want[name])


def refused(path, *words):
    with pytest.raises(UsageError) as error:
        read_tensors(path)
    line = str(error.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 900
    for word in (path.name, *words):
        assert word in line, line
    return line


def stored(tmp_path, header, data=b"", length=None, name="a.safetensors"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / name
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_reference_writes(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    reference.save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    tensors = read_tensors(tmp_path / "a.safetensors")
    same(tensors, TENSORS)
    assert not any(t.flags.writeable for t in tensors.values() if t.size)


def test_the_reference_reads_what_is_written(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    big = {"big-endian": np.arange(4, dtype=">f4"), "strided": some(np.float32, 4, 6).T[::2]}
    path = write_tensors(tmp_path / "a.safetensors", TENSORS | big, {"format": "pt"})
    same(reference.load_file(path), TENSORS | {name: a.astype(np.float32) for name, a in big.items()})
    same(read_tensors(path), TENSORS | {name: a.astype(np.float32) for name, a in big.items()})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_narrow_types(tmp_path, kind):
    a = some(np.float32, 3, 5).astype(kind)
    same(read_tensors(write_tensors(tmp_path / "a.safetensors", {"a": a})), {"a": a})


def test_bfloat16_bits(tmp_path):
    path = stored(tmp_path, {"a": entry("BF16", (2,), (0, 4))}, b"\x80\x3f\x00\xc0")
    assert read_tensors(path)["a"].astype(np.float32).tolist() == [1.0, -2.0]


def test_every_tensor_begins_at_a_multiple_of_its_width(tmp_path):
    tensors = {"a": some(np.uint8, 3), "b": some(np.float64, 2), "c": some(np.float16, 1), "d": some(np.float32, 1)}
    data = write_tensors(tmp_path / "a.safetensors", tensors).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0


def test_float32_is_little_endian_and_tensors_may_begin_anywhere(tmp_path):
    header = {"b": entry("F32", (1,), (1, 5)), "a": entry("U8", (1,), (0, 1)), "__metadata__": {"x": "y"}}
    tensors = read_tensors(stored(tmp_path, header, b"\x07\x00\x00\x80\x3f"))
    assert (int(tensors["a"][0]), float(tensors["b"][0])) == (7, 1.0)


def test_what_cannot_be_written(tmp_path):
    for tensors in ({"a": np.zeros(2, np.complex64)}, {"a": np.array(["x"])}, {"__metadata__": np.zeros(1)}):
        with pytest.raises(UsageError, match="cannot be written"):
            write_tensors(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())


def torch_like(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_pickles_are_refused_by_content_and_by_name(tmp_path):
    for name in ("model.pt", "model.safetensors", "model"):
        torch_like(tmp_path / name)
        assert "save_file" in refused(tmp_path / name, "is a pickle", "docs/convert.md")
        for protocol in (2, 3, 4, 5):
            (tmp_path / name).write_bytes(pickle.dumps(Evil(), protocol))
            refused(tmp_path / name, "is a pickle")
    for ending in ("pt", "pth", "bin", "pkl", "ckpt", "PT"):
        (tmp_path / f"old.{ending}").write_bytes(pickle.dumps(Evil(), 0))
        refused(tmp_path / f"old.{ending}", "is a pickle")


def test_content_counts_not_the_name(tmp_path):
    for name in ("a.bin", "a"):
        path = write_tensors(tmp_path / name, {"a": some(np.float32, 3)})
        assert list(read_tensors(path)) == ["a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file (0 bytes)"),
        (b"\x00" * 7, "not a safetensors file"),
        (b"\x00" * 64, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\x00" * 40, "HDF5"),
        (b"GGUF" + b"\x00" * 40, "GGUF"),
        (b"\x1f\x8b\x08" + b"\x00" * 40, "unpack it"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "cut short or no safetensors file"),
        ((100).to_bytes(8, "little") + b"{}", "cut short or no safetensors file"),
    ],
)
def test_misnamed_and_empty_files(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, words)


def test_no_such_file(tmp_path):
    refused(tmp_path / "none.safetensors", "no such file")
    refused(tmp_path, "no such file")


BAD = {
    "no JSON": (b'{"a": ', b"", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not JSON"),
    "too deep": (b'{"a":' * 100_000, b"", "not JSON"),
    "a huge number": (b'{"a":' + b"9" * 10_000 + b"}", b"", "not JSON"),
    "twice": (b'{"a": 1, "a": 2}', b"", "'a' is given twice"),
    "a field twice": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype' is given twice"),
    "metadata a list": ({"__metadata__": []}, b"", "__metadata__"),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "not a dict": ({"a": 3}, b"", "needs dtype, shape, data_offsets"),
    "fields missing": ({"a": {"dtype": "F32", "shape": [2]}}, b"", "needs dtype, shape, data_offsets"),
    "fields more": ({"a": entry() | {"x": 1}}, bytes(8), "needs dtype, shape, data_offsets"),
    "dtype unknown": ({"a": entry("F4")}, bytes(8), "dtype F4"),
    "dtype a list": ({"a": entry(["F32"])}, bytes(8), "dtype"),
    "dtype hostile": ({"a": entry("x\n\x1b[2J" * 1000)}, bytes(8), "dtype"),
    "shape negative": ({"a": entry(shape=(-2,))}, bytes(8), "shape"),
    "shape both negative": ({"a": entry(shape=(-2, -1))}, bytes(8), "shape"),
    "shape a fraction": ({"a": entry(shape=(2.0,))}, bytes(8), "shape"),
    "shape true": ({"a": entry(shape=(True, 2))}, bytes(8), "shape"),
    "shape text": ({"a": entry() | {"shape": "2"}}, bytes(8), "shape"),
    "shape of many axes": ({"a": entry(shape=(1,) * 200 + (2,))}, bytes(8), "shape"),
    "shape empty and vast": ({"a": entry(shape=(0, 2**60, 2**60), offsets=(0, 0))}, b"", "shape"),
    "shape too large": ({"a": entry(shape=(2**40, 2**40))}, bytes(8), "is 4835703278458516698824704 bytes"),
    "shape lies": ({"a": entry(shape=(3,))}, bytes(8), "is 12 bytes by dtype and shape, 8 by its data_offsets"),
    "offsets backwards": ({"a": entry(offsets=(8, 0))}, bytes(8), "data_offsets"),
    "offsets negative": ({"a": entry(offsets=(-8, 0))}, bytes(8), "data_offsets"),
    "offsets three": ({"a": entry(offsets=(0, 8, 8))}, bytes(8), "data_offsets"),
    "offsets beyond the end": ({"a": entry(offsets=(8, 16))}, bytes(8), "begins at byte 8"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "begins at byte 4 of the data, expected 8"),
    "the same place": ({"a": entry(), "b": entry()}, bytes(8), "begins at byte 0 of the data, expected 8"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "begins at byte 12 of the data, expected 8"),
    "empty and immense": ({"a": entry(shape=(0, 2**47, 2**47), offsets=(0, 0))}, b"", "has shape"),
    "cut short": ({"a": entry()}, bytes(7), "is cut short"),
    "too long": ({"a": entry()}, bytes(9), "is too long"),
    "name with lines": ({"a\nb": entry(shape=(3,))}, bytes(8), "a\\nb"),
}


@pytest.mark.parametrize("name", BAD)
def test_headers_that_lie(tmp_path, name):
    header, data, words = BAD[name]
    refused(stored(tmp_path, header, data), words)


def test_a_huge_header_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**31)  # takes no space on disk
    refused(path, "at most 100000000")


def test_random_corruptions(tmp_path):
    whole = write_tensors(tmp_path / "good.safetensors", TENSORS, {"format": "pt"}).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw, survived = random.Random(0), 0
    for i in range(400):
        data = bytearray(whole)
        kind = i % 4
        if kind == 0:
            data = data[: draw.randrange(len(data))]
        elif kind == 1:
            at = draw.randrange(len(data))
            data[at:at] = draw.randbytes(draw.randrange(1, 5))
        else:  # a byte or four of the header
            for _ in range(1 if kind == 2 else 4):
                data[draw.randrange(header)] = draw.choice([draw.randrange(256), *b'0123456789,:{}[]"'])
        path = tmp_path / "a.safetensors"
        path.write_bytes(data)
        try:
            read_tensors(path)
            survived += 1  # a letter of a name, or blank space
        except UsageError as error:
            line = str(error)
            assert "a.safetensors" in line
            assert line.isprintable()
            assert len(line) < 900
    assert survived < 120


def shards(tmp_path, files=("m-1.safetensors", "m-2.safetensors"), **weight_map):
    parts = {"a": some(np.float32, 2), "b": some(np.float16, 3), "c": some(np.float32, 1)}
    write_tensors(tmp_path / files[0], {"a": parts["a"], "b": parts["b"]})
    write_tensors(tmp_path / files[1], {"c": parts["c"]})
    index = {"metadata": {}, "weight_map": {"a": files[0], "b": files[0], "c": files[1]} | weight_map}
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path / "m.safetensors.index.json", parts


def test_several_files(tmp_path):
    path, parts = shards(tmp_path)
    assert is_index(path)
    assert not is_index("config.json")
    same(read_tensors(path), parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": "../m-1.safetensors"}, "only files beside it"),
        ({"a": "/etc/passwd"}, "only files beside it"),
        ({"a": "..\\m-1.safetensors"}, "only files beside it"),
        ({"a": ""}, "not there"),
        ({"a": ".."}, "not there"),
        ({"a": "m-3.safetensors"}, "not there"),
        ({"a": "m-2.safetensors"}, "disagree about a"),
        ({"d": "m-2.safetensors"}, "disagree about d"),
        ({"b": None}, "disagree about b"),
        ({"a": 3}, "weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path, change, words):
    refused(shards(tmp_path, **change)[0], words)


def test_an_index_that_is_none(tmp_path):
    for text in ("[]", "{}", '{"weight_map": 1}', "{", '{"weight_map": {"a": "x", "a": "y"}}'):
        (tmp_path / "m.safetensors.index.json").write_text(text)
        refused(tmp_path / "m.safetensors.index.json")


def test_the_weights_of_a_folder(tmp_path):
    with pytest.raises(UsageError, match="has no weights"):
        weights_file(tmp_path, "m")
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a pickle"):
        weights_file(tmp_path, "m")
    one = {"a": some(np.float32, 2)}
    write_tensors(tmp_path / "m.fp16.safetensors", one)
    assert weights_file(tmp_path, "m").name == weights_file(tmp_path).name == "m.fp16.safetensors"
    write_tensors(tmp_path / "m.non_ema.safetensors", one)
    with pytest.raises(UsageError, match=r"several files of weights, m\.fp16"):
        weights_file(tmp_path, "m")
    shards(tmp_path, ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"))
    assert weights_file(tmp_path, "m").name == "m.safetensors.index.json"
    write_tensors(tmp_path / "m.safetensors", one)
    assert weights_file(tmp_path, "m").name == "m.safetensors"
    parts = tmp_path / "parts"  # the parts of an index are not weights by themselves
    parts.mkdir()
    shards(parts, ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"))
    assert weights_file(parts).name == "m.safetensors.index.json"
    with pytest.raises(UsageError, match="has no weights: needed is other"):
        weights_file(tmp_path, "other")


def test_writing_is_whole(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3, np.float32)})
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_tensors(path, {"a": np.ones(3, np.float32)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before
