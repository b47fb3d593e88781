"""Tables of names: every rule against its definition and its inverse, and what does not fit said in one line."""

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxdiff.convert.rules import (
    CONV,
    CONV1,
    CONV1_1D,
    DENSE,
    SAME,
    Rule,
    joined,
    order,
    permuted,
    reshaped,
    scaled,
)
from jaxdiff.convert.table import Constant, Row, leaves, read, write
from jaxdiff.convert.text import clean
from jaxdiff.errors import UsageError

HEADS, DIM = 2, 3


def normal(*shape, seed=0):
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def like(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}


def test_conv_moves_axes_as_defined():
    theirs = normal(5, 4, 3, 2)
    ours = CONV.read(theirs)
    assert ours.shape == (3, 2, 4, 5)
    assert ours[2, 1, 3, 4] == theirs[4, 3, 2, 1]
    assert CONV.read(normal(5, 4, 3)).shape == (3, 4, 5)
    assert CONV.write(normal(3, 3, 3, 4, 5))[0].shape == (5, 4, 3, 3, 3)


def test_dense_and_convolutions_of_kernel_one_are_the_same_map():
    theirs = normal(5, 4)
    np.testing.assert_array_equal(DENSE.read(theirs), theirs.T)
    np.testing.assert_array_equal(CONV1.read(theirs[:, :, None, None]), theirs.T)
    np.testing.assert_array_equal(CONV1_1D.read(theirs[:, :, None]), theirs.T)
    x = normal(7, 4, seed=1)
    np.testing.assert_allclose(x @ DENSE.read(theirs), np.einsum("oi,bi->bo", theirs, x), rtol=1e-5, atol=1e-6)


def test_joined_gives_queries_then_keys_then_values():
    q, k, v = normal(3, HEADS * DIM, 4)
    x = normal(1, 4, seed=1)
    ours = x @ joined(DENSE, 3).read(q, k, v)
    np.testing.assert_allclose(ours.reshape(3, -1), np.concatenate([x @ q.T, x @ k.T, x @ v.T]), rtol=1e-5)
    np.testing.assert_array_equal(joined(SAME, 2).read(np.arange(2.0), np.arange(3.0)), [0, 1, 0, 1, 2])


@pytest.mark.parametrize(
    ("shape", "axes", "at"),
    [
        ((HEADS, 3, DIM), (1, 0, 2), lambda part, head, i: (head * 3 + part) * DIM + i),
        ((HEADS, DIM, 3), (2, 0, 1), lambda part, head, i: (head * DIM + i) * 3 + part),
    ],
    ids=["legacy", "interleaved"],
)
def test_permuted_channels_of_attention(shape, axes, at):
    theirs = normal(3 * HEADS * DIM, 4)
    ours = permuted(DENSE, order(shape, axes)).read(theirs).reshape(4, 3, HEADS, DIM)
    for part in range(3):
        for head in range(HEADS):
            for i in range(DIM):
                np.testing.assert_array_equal(ours[:, part, head, i], theirs[at(part, head, i)])


def test_permuted_inputs():
    theirs = normal(5, 4)
    np.testing.assert_array_equal(permuted(DENSE, [2, 3, 0, 1], axis=0).read(theirs), theirs.T[[2, 3, 0, 1]])
    with pytest.raises(UsageError, match="not a permutation"):
        permuted(SAME, [0, 0, 1])
    with pytest.raises(UsageError, match="length 3"):
        permuted(SAME, [0, 2, 1]).read(np.zeros(4))


ROUND = {
    "same": (SAME, (5,)),
    "dense": (DENSE, (4, 5)),
    "conv 1d": (CONV, (3, 4, 5)),
    "conv 2d": (CONV, (3, 2, 4, 5)),
    "conv1": (CONV1, (4, 5)),
    "conv1 1d": (CONV1_1D, (4, 5)),
    "joined": (joined(DENSE, 3), (4, 6)),
    "joined along an axis": (joined(SAME, 2, axis=0), (6, 3)),
    "permuted": (permuted(joined(CONV1, 3), order((HEADS, 3, DIM), (1, 0, 2))), (4, 18)),
    "scaled": (scaled(DENSE, 4.0), (4, 5)),
    "reshaped": (reshaped(SAME, (1, 4, 8), (2, 2, 8)), (2, 2, 8)),
    "patches": (reshaped(CONV, (2, 2, 3, 5), (12, 5)), (12, 5)),
}


@pytest.mark.parametrize("name", ROUND)
def test_reading_what_was_written(name):
    rule, shape = ROUND[name]
    params, names = {"p": normal(*shape)}, tuple(f"w{i}" for i in range(len(rule.write(normal(*shape)))))
    table = [Row("p", names, rule)]
    tensors = write(table, params)
    assert all(t.flags.c_contiguous and t.dtype == np.float32 for t in tensors.values())
    np.testing.assert_array_equal(read(table, tensors, like(p=shape))["p"], params["p"])


def test_scaled_is_a_factor_and_rounds_once():
    assert scaled(SAME, 3.0).read(np.float32([2]))[0] == 6
    p = normal(1000)
    rule = scaled(SAME, np.sqrt(10.0))
    table, shapes = [Row("p", ("w",), rule)], like(p=(1000,))
    back = read(table, write(table, {"p": p}), shapes)["p"]
    assert np.abs(back / p - 1).max() < 1.3e-7
    for factor in (0.0, np.inf, np.nan):
        with pytest.raises(UsageError, match="factor"):
            scaled(SAME, factor)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_read_as_float32(kind):
    stored = normal(3, 4).astype(kind)
    params = read([Row("p", ("w",), DENSE)], {"w": stored}, like(p=(4, 3)))["p"]
    assert params.dtype == np.float32
    np.testing.assert_array_equal(params, stored.T.astype(np.float32))


def test_integers_only_where_the_rule_allows():
    tensors = {"w": np.arange(3)}
    with pytest.raises(UsageError, match="1 not floating-point: w int64"):
        read([Row("p", ("w",), SAME)], tensors, like(p=(3,)))
    with pytest.raises(UsageError, match="not floating-point: w float8"):
        read([Row("p", ("w",), SAME)], {"w": np.zeros(3, ml_dtypes.float8_e5m2)}, like(p=(3,)))
    counts = Rule("counts", lambda w: w, lambda p: (p,), integers=True)
    assert read([Row("p", ("w",), counts)], tensors, like(p=(3,)))["p"].tolist() == [0.0, 1.0, 2.0]
    assert scaled(joined(counts, 1), 2.0).integers
    assert permuted(reshaped(counts, (3,), (3,)), [0, 1, 2]).integers


def table_of(n):
    return [Row(f"p{i}", (f"w{i}",), DENSE) for i in range(n)]


class Unread:
    """A tensor that must not be looked at."""

    dtype = np.dtype(np.float32)

    def __init__(self, *shape):
        self.shape = shape

    def __array__(self, *args, **kwargs):
        raise AssertionError("was read")


def test_all_that_does_not_fit_is_one_line_and_nothing_was_read():
    tensors = {f"w{i}": Unread(4, 3) for i in range(9) if i not in (2, 3, 5, 7)}
    tensors |= {"w0": Unread(4, 2), "w8": Unread(4), "more\nlines": Unread(1), "extra": Unread(1)}
    with pytest.raises(UsageError) as error:
        read(table_of(9), tensors, like(**{f"p{i}": (3, 4) for i in range(9)}))
    assert str(error.value) == (
        "the weights do not fit the network: 4 missing: w2, w3, w5 and 1 more; 2 left over: 'more\\nlines', extra; "
        "2 of another shape: w0 [4, 2] instead of [4, 3], w8 [4] instead of [4, 3]"
    )


def test_a_table_that_does_not_fit_its_network_is_refused():
    rows = [*table_of(2), Row("p0", ("w1",), DENSE), Row("q", ("w9",), SAME), Constant("w0", np.zeros(1))]
    for call in (
        lambda: read(rows, {}, like(p0=(3, 4), p1=(3, 4), p2=(3, 4))),
        lambda: write(rows, {f"p{i}": normal(3, 4) for i in range(3)}),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert str(error.value) == (
            "the table of names does not fit the network: 1 parameters listed twice: p0; 2 tensors listed twice: "
            "w0, w1; 1 parameters not listed: p2; 1 parameters listed that the network lacks: q"
        )
    with pytest.raises(UsageError, match="names 2 tensors, its rule has 1"):
        read([Row("p", ("a", "b"), SAME)], {}, like(p=(2,)))
    lopsided = Rule("lopsided", lambda w: w.T, lambda p: (p,))
    with pytest.raises(UsageError, match="not its inverse"):
        read([Row("p", ("a",), lopsided)], {"a": normal(2, 3)}, like(p=(2, 3)))


FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32)[None, None] / 64


def test_constants_are_checked_and_written_back():
    table = [Row("p", ("w",), SAME), Constant("filter", FILTER), Constant("position_ids", np.arange(3), optional=True)]
    written = write(table, {"p": normal(2)})
    np.testing.assert_array_equal(written["filter"], FILTER)
    assert written["position_ids"].dtype == np.int64
    shapes = like(p=(2,))
    read(table, written, shapes)
    read(table, {"w": written["w"], "filter": FILTER.astype(np.float16)}, shapes)
    for bad in (FILTER * 1.01, np.full_like(FILTER, np.nan), np.ones_like(FILTER) / 16):
        with pytest.raises(UsageError, match="of another network: 1 constants of another value: filter"):
            read(table, written | {"filter": bad}, shapes)
    with pytest.raises(UsageError, match="1 constants of another value: position_ids"):
        read(table, written | {"position_ids": np.arange(1, 4)}, shapes)
    with pytest.raises(UsageError, match=r"1 of another shape: filter \[2\]"):
        read(table, written | {"filter": normal(2)}, shapes)
    with pytest.raises(UsageError, match="1 missing: filter"):
        read(table, {"w": written["w"]}, shapes)


@pytest.mark.parametrize(("kind", "bits"), [(np.float16, 10), (ml_dtypes.bfloat16, 7)])
def test_constants_in_half_precision_are_compared_as_finely_as_it_is(kind, bits):
    levels = np.geomspace(100, 0.01, 50)
    rows = [Row("p", ("w",), SAME), Constant("sigmas", levels, tolerance=1e-6)]
    tensors, shapes = {"w": normal(2), "sigmas": levels.astype(kind)}, like(p=(2,))
    read(rows, tensors, shapes)
    for bad in ((levels * (1 + 2.1 * 2.0**-bits)).astype(kind), (levels * (1 + 2e-6)).astype(np.float32)):
        with pytest.raises(UsageError, match="constants of another value: sigmas"):
            read(rows, tensors | {"sigmas": bad}, shapes)


def test_the_tree_keeps_its_structure_and_its_own_memory():
    tensors = {"a": normal(3), "b": normal(4, 3)}
    tree = {"z": like(bias=(3,)), "a": {"b": like(kernel=(3, 4))}}
    table = [Row("z/bias", ("a",), SAME), Row("a/b/kernel", ("b",), DENSE)]
    seen = []
    params = read(table, tensors, tree, done=seen.append)
    assert seen == ["z/bias", "a/b/kernel"]
    assert jax.tree.structure(params) == jax.tree.structure(tree)
    assert list(leaves(params)) == ["a/b/kernel", "z/bias"]
    tensors["a"][:] = 7
    assert not (params["z"]["bias"] == 7).any()
    assert params["a"]["b"]["kernel"].flags.c_contiguous


def test_names_from_files_stay_on_their_line():
    assert clean("a\x1b[2J") == "'a\\x1b[2J'"
    assert clean("\ud800").isascii()
    assert len(clean("x" * 10**6)) < 200
