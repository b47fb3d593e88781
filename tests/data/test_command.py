"""`jaxdiff data`: its figures against the data, its picture against the batch, its list of files against the damage."""

import re
import time

import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import data as command
from jaxdiff.config import default_config
from jaxdiff.data import Batches, make
from jaxdiff.data.transforms import to_uint8
from jaxdiff.errors import UsageError


def config(**values):
    made = default_config()
    made.data.update({"name": "synthetic", "split": "train[:110]", "image_size": 16, "channels": 3, **values})
    made.train.batch_size = 32
    return made


def rows(capsys) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in lines}


def test_the_figures_are_those_of_the_images(capsys):
    assert command.data(config(), seconds=0.05) == 0
    found = rows(capsys)
    source = make("synthetic", split="train[:110]", image_size=16)
    x = np.stack([source[i]["image"] for i in range(110)]) / 127.5 - 1
    assert found["images"] == "110 of synthetic, train[:110]; in memory"
    assert found["image"] == "16 x 16 x 3, 10 classes"
    numbers = [float(text) for text in re.findall(r"(?:min|max|mean|std) (-?[\d.]+)", found["x0"])]
    np.testing.assert_allclose(numbers, [x.min(), x.max(), x.mean(), x.std()], atol=6e-4)
    assert found["labels"] == "10 of 10 occur, 11 to 11 times each"
    assert re.fullmatch(r"[\d,]+ images/s in batches of 32, no workers", found["speed"])
    assert "picture" not in found


def test_statistics_stop_where_they_would_take_long(capsys, monkeypatch):
    monkeypatch.setattr(command, "_STATISTICS", 50 * 16 * 16 * 3)
    command.data(config(), seconds=0.01)
    out = capsys.readouterr().out
    assert "(both from 50 images)" in out
    assert sum(int(n) for n in re.findall(r"(\d+) to (\d+) times", out)[0]) <= 50


def test_the_picture_is_the_first_batch_by_label(capsys, tmp_path):
    command.data(config(), out=tmp_path / "look.png", seconds=0.01)
    assert rows(capsys)["picture"] == str(tmp_path / "look.png")
    picture = np.asarray(Image.open(tmp_path / "look.png"))
    batch = Batches(make("synthetic", split="train[:110]", image_size=16), batch_size=32, seed=0)[0]
    images, labels = to_uint8(batch["x0"]), batch["cond"]["label"]
    tiles = [
        picture[top : top + 32 : 2, left : left + 32 : 2] for top in range(2, 206, 34) for left in range(2, 206, 34)
    ]
    wanted = [image for label in range(10) for image in images[labels == label]]
    assert len(wanted) == 32
    assert all(map(np.array_equal, tiles, wanted))


def test_the_rate_counts_images():
    class OneByOne:
        shape, num_classes = (2, 2, 1), 0

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict:
            time.sleep(0.005)
            return {"image": np.zeros((2, 2, 1), np.uint8)}

    rate = command._rate(Batches(OneByOne(), batch_size=4, seed=0), 0, 0.4)
    assert 100 < rate < 440  # two threads, 200 images/s each; the machine may be busy


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])  # seen in the pixels only
    (tmp_path / "7.png").write_bytes(b"no image")
    return tmp_path


def of(folder, **values):
    return config(name="image_folder", path=str(folder), split="train", num_classes=0, **values)


def test_every_file_that_cannot_be_read_is_listed_and_refused(folder, capsys):
    with pytest.raises(UsageError, match=r"2 images cannot be read.*skip_corrupt=True") as caught:
        command.data(of(folder))
    assert "\n" not in str(caught.value)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("unreadable image") for line in lines)
    assert {re.search(r"(\d+)\.png", line)[1] for line in lines} == {"3", "7"}


def test_they_are_left_out_only_if_asked(folder, capsys):
    with pytest.warns(UserWarning, match="left out 2 of 12"):
        assert command.data(of(folder, skip_corrupt=True), seconds=0.01) == 0
    out = capsys.readouterr().out
    assert out.count("unreadable image") == 2
    assert "images     10 of image_folder" in out
    assert "16 x 16 x 3, no classes" in out
    assert "labels" not in out


def test_a_whole_folder_lists_nothing(folder, capsys):
    (folder / "3.png").unlink()
    (folder / "7.png").unlink()
    assert command.data(of(folder), seconds=0.01) == 0
    assert "unreadable" not in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused():
    for seconds in (0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="seconds="):
            command.data(config(), seconds=seconds)
    with pytest.raises(UsageError, match="needs path"):
        command.data(config(name="image_folder", path=""))
