"""Checksums: equation (1) in plain integers, everything that must change them, everything that must not."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.errors import UsageError
from jaxdiff.train.checksums import Leaf, Record, check_same, checksums


def of(a):
    return checksums({"a": a})["a"]


def by_hand(words):
    total = 0
    for i, word in enumerate(words):
        x = (word + i * 0x9E3779B9) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        total += x ^ x >> 16
    return total % 2**32


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_single_word_is_murmurhash3_of_nothing_with_that_seed():
    """Its published test vectors: the finaliser is all that such a hash does."""
    assert of(np.uint32([0])) == 0
    assert of(np.uint32([1])) == 0x514E28B7
    assert of(np.uint32([0xFFFFFFFF])) == 0x81F16F39


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 4), (2, 3, 4), (4, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "bool"])
def test_equation_1(shape, dtype):
    a = (100 * normal(*shape)).astype(dtype)
    raw = np.asarray(a)
    words = np.frombuffer(raw.tobytes(), f"uint{8 * raw.itemsize}").tolist()
    assert of(a) == by_hand(words)


def test_64_bits_are_two_words(x64):
    a = np.arange(6.0).reshape(2, 3)
    assert of(a) == by_hand(np.frombuffer(a.tobytes(), "uint32").tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_any_flipped_bit_changes_it(dtype):
    a = np.asarray((100 * normal(6)).astype(dtype))
    whole, seen = of(a), set()
    for bit in range(8 * a.nbytes):
        raw = bytearray(a.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        seen.add(of(np.frombuffer(raw, a.dtype)))
    assert whole not in seen
    assert len(seen) == 8 * a.nbytes


@pytest.mark.parametrize("a", [normal(12), jnp.where(jnp.arange(12) % 2, 1.0, -1.0)], ids=["any", "sign alone"])
def test_elements_that_change_places_change_it(a):
    for i, j in itertools.combinations(range(12), 2):
        if a[i] != a[j]:
            swapped = np.asarray(a).copy()
            swapped[[i, j]] = swapped[[j, i]]
            assert of(swapped) != of(a)
    assert of(jnp.roll(a, 1)) != of(a)


def test_minus_zero_and_the_bits_of_nan_count():
    zeros = np.zeros(2, np.float32)
    assert of(zeros) != of(-zeros)
    quiet, other = np.uint32([0x7FC00000]).view(np.float32), np.uint32([0x7FC00001]).view(np.float32)
    assert of(quiet) != of(other)


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "fsdp"), P("fsdp", "data"), P(("data", "fsdp"))])
def test_layout_and_number_of_devices_do_not_count(spec):
    a = normal(16, 8, 3)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    assert of(jax.device_put(a, NamedSharding(mesh, spec))) == of(a)


def record():
    return Record.of(7, {"params/a": normal(3), "step": jnp.int32(7)}, 0.25)


def test_a_record_comes_back(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record().to_json()))
    assert Record.read(path, 7) == record()
    with pytest.raises(ValueError, match=r"record\.json is of step 7"):
        Record.read(path, 8)


def test_any_flipped_bit_of_a_record_is_seen(tmp_path):
    path, text = tmp_path / "record.json", json.dumps(record().to_json()).encode()
    for bit in range(8 * len(text)):
        raw = bytearray(text)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"record\.json is (no JSON|not as it was written)"):
            Record.read(path, 7)


def test_what_differs_is_named_and_counted():
    saved = {f"a{i}": Leaf("float32", (2,), 0) for i in range(9)} | {"b": Leaf("float32", (3,), 0)}
    wanted = {f"a{i}": jax.ShapeDtypeStruct((4,), "float32") for i in range(7)}
    wanted |= {"b": jax.ShapeDtypeStruct((3,), "bfloat16"), "c": jax.ShapeDtypeStruct((), "int32")}
    with pytest.raises(UsageError) as error:
        check_same(saved, wanted, "it")
    assert str(error.value) == (
        "it is of another model: 1 missing there: c; 2 only there: a7, a8; 7 of another shape: "
        + ", ".join(f"a{i} is (2,) there and (4,) here" for i in range(5))
        + ", ...; 1 of another dtype: b is float32 there and bfloat16 here"
    )
    check_same(saved, {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()}, "it")
