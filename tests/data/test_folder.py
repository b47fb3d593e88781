"""Folders of images: classes, sizes, and hostile files."""

import os
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from jaxdiff import data
from jaxdiff.data.folder import ImageFolder, unreadable
from jaxdiff.data.listing import list_images
from jaxdiff.data.splits import bounds
from jaxdiff.errors import UsageError


def save(path: Path, size: tuple[int, int] = (12, 10), color: object = (200, 30, 60), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def noise(path: Path, size: int = 64) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def forged_png(width: int, height: int) -> bytes:
    """A PNG whose header claims width x height and whose pixels are missing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(path: Path, match: str, **kwargs) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        data.make("image_folder", path=str(path), **kwargs)
    assert "\n" not in str(caught.value)


def test_subfolders_are_classes_in_sorted_order(tmp_path):
    for name, level in (("b", 20), ("a", 10), ("c", 30)):
        for i in range(5):
            save(tmp_path / name / "deeper" / f"{i}.png", color=(level, level, level))
    save(tmp_path / ".hidden" / "x.png")
    (tmp_path / "notes.txt").write_text("not an image")
    source = data.make("image_folder", path=str(tmp_path))
    assert source.classes == ("a", "b", "c")
    assert source.num_classes == 3
    assert len(source) == 15
    assert source.shape == (10, 12, 3)
    for i in range(15):
        record = source[i]
        assert (record["image"] == 10 * (record["label"] + 1)).all()
    head = data.make("image_folder", path=str(tmp_path), split="train[:60%]")
    assert len(head) == 9
    assert {head[i]["label"] for i in range(9)} == {0, 1, 2}
    rest = data.make("image_folder", path=str(tmp_path), split="train[60%:]")
    counts = np.bincount([s[i]["label"] for s in (head, rest) for i in range(len(s))])
    assert counts.tolist() == [5, 5, 5]
    assert (pickle.loads(pickle.dumps(source))[4]["image"] == source[4]["image"]).all()


def test_images_directly_in_the_folder_have_no_labels(tmp_path):
    for i, suffix in enumerate(("png", "jpg", "jpeg", "webp", "bmp", "gif")):
        save(tmp_path / f"{i}.{suffix.upper() if i % 2 else suffix}", color=(128, 128, 128))
    source = data.make("image_folder", path=str(tmp_path))
    assert source.num_classes == 0
    assert len(source) == 6
    for i in range(6):
        assert set(source[i]) == {"image"}
        assert np.abs(source[i]["image"].astype(int) - 128).max() <= 2


def test_gray_folders_have_one_channel_and_deep_ones_keep_their_high_bits(tmp_path):
    save(tmp_path / "a.png", color=77, mode="L")
    Image.fromarray(np.full((10, 12), 51 * 256 + 7, np.uint16)).save(tmp_path / "b.png")
    source = data.make("image_folder", path=str(tmp_path))
    assert source.shape == (10, 12, 1)
    assert {int(source[i]["image"][0, 0, 0]) for i in range(2)} == {77, 51}
    assert data.make("image_folder", path=str(tmp_path), channels=3)[0]["image"].shape == (10, 12, 3)


def test_mixed_sizes_ask_for_image_size_and_get_a_centre_square(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # the centre square is white, the rest black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    save(tmp_path / "small.png", size=(5, 7), color=(9, 9, 9))
    refused(tmp_path, "2 sizes.*set image_size")
    source = data.make("image_folder", path=str(tmp_path), image_size=10)
    images = {int(source[i]["image"][5, 5, 0]): source[i]["image"] for i in range(2)}
    assert set(images) == {9, 255}
    assert images[9].shape == (10, 10, 3)
    assert images[255].mean() > 240  # only its edge sees the black


def test_scaling_down_averages(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    image = data.make("image_folder", path=str(tmp_path), image_size=24)[0]["image"]
    assert np.abs(image.astype(int) - 128).max() <= 1  # without antialiasing: 0 and 255


def test_a_strip_does_not_blow_up(tmp_path):
    # Scaled before it is cut, this would be 64 x 3,200,000,000 pixels.
    Image.new("L", (50_000_000, 1), 50).save(tmp_path / "strip.png")
    image = data.make("image_folder", path=str(tmp_path), image_size=64)[0]["image"]
    assert image.shape == (64, 64, 1)
    assert (image == 50).all()


def test_corrupt_header(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"this is no image")
    refused(tmp_path, "bad.png.*data.skip_corrupt=True")
    with pytest.warns(UserWarning, match="left out 1 of 2 images.*bad.png"):
        source = data.make("image_folder", path=str(tmp_path), skip_corrupt=True)
    assert len(source) == 1
    assert source.skipped == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_truncated_file(tmp_path, suffix):
    noise(tmp_path / f"good.{suffix}")
    file = noise(tmp_path / f"cut.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    with pytest.raises(UsageError, match=f"cut.{suffix}.*data.skip_corrupt=True") as caught:
        data.load(data.make("image_folder", path=str(tmp_path)))  # seen in the header or in the pixels
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert len(data.make("image_folder", path=str(tmp_path), skip_corrupt=True)) == 1


def test_header_that_claims_too_much(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(forged_png(9000, 8000))
    refused(tmp_path, "bomb.png' is 9000 x 8000, over 67108864 pixels")
    (tmp_path / "bomb.png").write_bytes(forged_png(2**31 - 1, 2**31 - 1))
    refused(tmp_path, "bomb.png.*skip_corrupt")
    with pytest.warns(UserWarning, match="left out 1 of 2"):
        assert len(data.make("image_folder", path=str(tmp_path), skip_corrupt=True)) == 1
    (tmp_path / "bomb.png").unlink()
    with pytest.raises(UsageError, match="over 119 pixels"):
        ImageFolder(tmp_path, max_pixels=119)
    assert len(ImageFolder(tmp_path, max_pixels=120)) == 1


def test_links_stay_inside(tmp_path):
    outside = save(tmp_path / "outside" / "secret.png")
    root = tmp_path / "root"
    real = save(root / "real.png")
    (root / "inner.png").symlink_to(real)
    assert len(data.make("image_folder", path=str(root))) == 2
    (root / "link.png").symlink_to(outside)
    refused(root, "link.png' leads out of the folder")
    refused(root, "leads out", skip_corrupt=True)
    (root / "link.png").unlink()
    (root / "class").symlink_to(outside.parent)
    refused(root, "class' leads out of the folder")
    (root / "class").unlink()
    (root / "loop").symlink_to(root)
    refused(root, "loop' leads to a folder")


def test_links_in_a_circle(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    refused(tmp_path, r"round.png'.*(circle|cannot be read)")
    (tmp_path / "round.png").unlink()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    refused(tmp_path, "gone.png' cannot be read")


def test_a_folder_deeper_than_the_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative, because the whole path would be longer than one may be
    save(Path("a/x.png"))
    deep = Path("a/" + "d/" * 800)
    deep.mkdir(parents=True)
    save(deep / "y.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        assert len(list_images(Path("."))[1]) == 2
    finally:
        sys.setrecursionlimit(limit)


def test_more_than_one_corrupt_file_is_counted_and_listed(tmp_path):
    save(tmp_path / "good.png")
    for name in ("x.png", "y.png", "z.png"):
        (tmp_path / name).write_bytes(b"no")
    refused(tmp_path, r"[xyz].png' cannot be read.*; 2 more such files: 'jaxdiff data' lists them")
    cut = noise(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:900])  # seen in the pixels only
    (tmp_path / "bomb.png").write_bytes(forged_png(9000, 8000))
    seen = []
    errors = unreadable(tmp_path, each=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    named = {name for name in os.listdir(tmp_path) for error in errors if f"{name}'" in str(error)}
    assert named == {"x.png", "y.png", "z.png", "cut.png", "bomb.png"}
    assert len(errors) == 5
    assert all("\n" not in str(error) for error in errors)


def test_nothing_over_the_limit_is_decoded(tmp_path, monkeypatch):
    save(tmp_path / "large.png", size=(20, 10))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for kwargs in ({}, {"skip_corrupt": True}):
        with pytest.raises(UsageError, match=r"over 199 pixels|no readable image"):
            ImageFolder(tmp_path, max_pixels=199, **kwargs)
    assert len(unreadable(tmp_path, max_pixels=199)) == 1


def test_a_pipe_does_not_hang(tmp_path):
    save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path, "pipe.png' is not a regular file")


def test_folders_that_hold_nothing_to_read(tmp_path):
    refused(tmp_path / "missing", "missing' is not a folder")
    refused(tmp_path, "holds no images")
    save(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    refused(tmp_path, "class folder 'b' holds no images")
    save(tmp_path / "y.png")
    refused(tmp_path, "both images and folders")
    with pytest.raises(UsageError, match="needs path"):
        data.make("image_folder")


def test_a_name_with_a_line_break_stays_one_line(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"no")
    refused(tmp_path, r"a\\nb.png")


@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 10), ("train[:90%]", 9), ("train[90%:]", 1), ("train[2:5]", 3), ("train[-4:]", 4), ("train[:]", 10)],
)
def test_splits(tmp_path, split, count):
    for i in range(10):
        save(tmp_path / f"{i}.png", color=(i, i, i))
    assert len(data.make("image_folder", path=str(tmp_path), split=split)) == count


def test_percentages_are_of_the_count():
    assert bounds("train[:90%]", 1000) == range(900)
    assert bounds("train[-25%:]", 1000) == range(750, 1000)
    assert bounds("train[:50%]", 5) == range(2)  # to the nearest, halves to even


@pytest.mark.parametrize("split", ["test", "train[", "train[a:b]", "train[:0]", "train[:101%]", "train[5%]", ""])
def test_wrong_splits(tmp_path, split):
    save(tmp_path / "a.png")
    refused(tmp_path, "split", split=split)
