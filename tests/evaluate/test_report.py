"""The report of a run, read by an HTML parser: everything logged is in it, nothing else is, and nothing can escape."""

import base64
import io
import json
import math
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxdiff import pictures
from jaxdiff.commands import report as command
from jaxdiff.commands.report import report
from jaxdiff.errors import UsageError
from jaxdiff.evaluate import report as made
from jaxdiff.evaluate.report import page
from jaxdiff.train.logging import Logger

RECORD = {"config": {"seed": 7, "train": {"steps": 60, "mark": "<b>&"}}, "versions": {"jax": "1.2.3"}}
TAGS = (
    "html head meta title style body h1 h2 p b div figure figcaption img table tr th td details summary "
    "svg defs path g use rect text tspan clippath line"
)


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def harmless(html):
    """Parse; refuse scripts, handlers, and anything that would be loaded from elsewhere."""
    read = Reader(html)
    assert read.open == []
    assert {name for name, _ in read.tags} <= set(TAGS.split())
    for _, attrs in read.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,", "data:image/gif;base64,"))
    assert html.count("<!DOCTYPE") == 1
    assert "url(http" not in html
    assert "@import" not in html
    return read


@pytest.fixture
def workdir(tmp_path):
    """A run of 60 steps, with what a run logs."""
    folder = tmp_path / "run"
    logger = Logger(folder, 0)
    for step in range(1, 61):
        logger.scalars(step, {"loss": 1 / step, "grad_norm": math.nan if step == 40 else 1.0})
    for step, loss in ((20, 0.5), (40, 0.25), (60, 0.375)):
        logger.scalars(step, {"eval_loss": loss})
        for i in range(3):
            logger.scalars(step, {f"noise_levels/{part}/{i}.00": loss + i for part in ("eps", "x0")})
        logger.picture(step, "samples", np.full((4, 4, 3), step, np.uint8))
    logger.picture(60, "way", np.zeros((2, 4, 4, 1), np.uint8))
    logger.picture(60, "noise_levels/plot", np.zeros((4, 4, 3), np.uint8))
    logger.close()
    (folder / "config.json").write_text(json.dumps(RECORD))
    return folder


def test_all_that_was_logged_is_shown(workdir):
    read = harmless(page(workdir, RECORD, [40, 60], 40))
    for said in (
        "60 of 60",
        "0.375 at the end, lowest 0.25 at step 40",
        "no number at step 40",
        "eval_loss 0.25, best",
        "eval_loss 0.375, newest",
        "train.mark<b>&",
        "jax1.2.3",
        "Pictures: samples",
        "Pictures: way",
    ):
        assert said in read.text, said
    assert "noise_levels_plot" not in read.text
    pixels = [Image.open(io.BytesIO(base64.b64decode(img["src"].partition(",")[2]))) for img in read.of("img")]
    assert [(p.format, np.asarray(p).flat[0]) for p in pixels] == [("PNG", 20), ("PNG", 40), ("PNG", 60), ("GIF", 0)]
    assert len(read.of("svg")) == 4  # loss, eval_loss, grad_norm, errors by level


def test_curves_hold_the_numbers(monkeypatch, workdir):
    figures = []
    monkeypatch.setattr(made, "_svg", lambda figure: figures.append(figure) or "")
    page(workdir, RECORD)
    loss, eval_loss, grad_norm, levels = (figure.axes for figure in figures)
    np.testing.assert_allclose(loss[0].get_lines()[0].get_xydata().T, [np.arange(1, 61), 1 / np.arange(1, 61)])
    assert loss[0].get_yscale() == "log"  # 1 to 1/60
    np.testing.assert_allclose(eval_loss[0].get_lines()[0].get_xydata(), [[20, 0.5], [40, 0.25], [60, 0.375]])
    assert eval_loss[0].get_yscale() == "linear"
    assert grad_norm[0].get_lines()[0].get_xdata().tolist() == [s for s in range(1, 61) if s != 40]
    assert [line.get_label() for line in levels[1].get_lines()] == ["20", "40", "60"]
    np.testing.assert_allclose(levels[1].get_lines()[1].get_xydata(), [[0, 0.25], [1, 1.25], [2, 2.25]])


def test_a_long_curve_keeps_its_means_and_extremes(monkeypatch, tmp_path):
    values = np.random.default_rng(0).normal(size=10_007)
    values[5000] = 100
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    figures = []
    monkeypatch.setattr(made, "_svg", lambda figure: figures.append(figure) or "")
    page(tmp_path, RECORD)
    (axis,) = figures[0].axes
    x, y = axis.get_lines()[0].get_xydata().T
    assert len(x) == 400
    counts = np.diff(np.append(x, len(values)))
    assert (y * counts).sum() == pytest.approx(values.sum())
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.max(), band.min()) == (100, values.min())


def test_many_moments_are_thinned_to_the_first_the_last_and_some_between(tmp_path):
    logger = Logger(tmp_path, 0)
    for step in range(100):
        logger.picture(step, "samples", np.full((2, 2, 1), step, np.uint8))
    logger.close()
    read = harmless(page(tmp_path, {}))
    steps = [int(img["alt"].split()[1]) for img in read.of("img")]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (0, 99)
    assert "Nothing was logged yet" in read.text


def test_hostile_names_and_files_stay_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&{title}$\\frac"
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, evil: 1.0, "noise_levels/eps/<b>": 1.0}) + "\n")
    good = pictures.png(np.zeros((2, 2, 3), np.uint8))
    safe = evil.replace("/", "_")
    (folder / "samples" / f"{safe}_0000001.png").write_bytes(good)
    (folder / "samples" / "page_0000001.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "samples" / "secret_0000001.png").symlink_to(folder / "samples" / f"{safe}_0000001.png")
    (folder / "samples" / "readme.txt").write_text(evil)
    with open(os.fsencode(folder / "samples") + b"/bytes\xff_0000001.png", "wb") as file:
        file.write(good)
    record = {"config": {evil: evil, "more": {evil: [evil]}}, "versions": {evil: evil}}
    (folder / "config.json").write_text(json.dumps(record))
    assert report(folder) == 0
    read = harmless((folder / "report.html").read_text())
    assert evil in read.text
    assert folder.name in read.text
    assert "secret" not in read.text
    assert len(read.of("img")) == 2


def test_a_picture_file_that_is_none_is_left_out(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "page_0000001.gif").write_bytes(b"<svg onload=alert(1)>")
    assert harmless(page(tmp_path, {})).of("img") == []


def test_the_command_writes_the_file_whole_where_it_is_told(workdir, tmp_path, capsys, monkeypatch):
    class Saved:
        steps, best = [20, 60], 20

        def __init__(self, directory, *, read_only):
            assert (directory, read_only) == (workdir / "checkpoints", True)

    monkeypatch.setattr(command, "Checkpoints", Saved)
    assert report(workdir, tmp_path / "deep" / "a.html") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'deep' / 'a.html'}\n"
    read = harmless((tmp_path / "deep" / "a.html").read_text())
    assert "eval_loss 0.5, best" in read.text
    assert os.listdir(tmp_path / "deep") == ["a.html"]


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_a_run_is_one_line(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_the_page_asks_for_no_network_and_fits_small_screens(workdir):
    read = harmless(page(workdir, RECORD))
    policy = next(meta["content"] for meta in read.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "width=device-width" in next(meta["content"] for meta in read.of("meta") if meta.get("name") == "viewport")
    assert "prefers-color-scheme: dark" in made._STYLE
