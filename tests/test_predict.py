"""Pictures of any kind are prepared like the run's own images, and predictions are the model's."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minitl import data, nn, no_grad, train
from minitl.data.actors import sample as sample_clips
from minitl.errors import InputError
from minitl.nn import ViTConfig
from minitl.train.predict import _read, predict

MODEL = ViTConfig(patch_size=4, dim=12, heads=2, mlp_dim=16, hidden=8, num_tokens=3, version="1.1", zero_head=False)


def started(monkeypatch, folder, size=(16, 24), channels=3, **options):
    """A run of random weights on random images of three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, *size, channels)).astype("uint8")
    split = data.Dataset(images, np.arange(30) % 3, ("ant", "bee", "a cicada"))
    monkeypatch.setattr(data, "load", lambda *_, **__: (split, split))
    trainer = train.start(train.TrainConfig(model=MODEL, epochs=1, **options), folder)
    if options.get("ema"):  # averaged weights differ from the others only behind a step
        assert trainer.fit()
    return split


def picture(path, size=(24, 16), mode="RGB", **options):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3)).astype("uint8")
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return pixels


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_picture_of_the_right_size_is_left_alone(tmp_path, monkeypatch, ema):
    """So that predict says of a test image what evaluate counts; neither needs the data set."""
    split = started(monkeypatch, tmp_path / "run", ema=ema)
    model, _, mean, std = train.load_run(tmp_path / "run")
    monkeypatch.setattr(data, "load", None)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, split.images[:2], strict=True):
        Image.fromarray(image).save(file)
    found = predict(tmp_path / "run", files)
    images = data.normalize(split.images[:2], mean, std)
    with no_grad():
        logits, maps = model(images).data, model.maps(images).data
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, odds, rtol=1e-5)
    np.testing.assert_allclose(found.maps, maps, rtol=1e-5)
    assert found.classes == split.classes and (found.pictures[1].shape, found.names) == (
        (16, 24, 3),
        (*map(str, files),),
    )


def test_the_middle_is_cut_out(tmp_path, monkeypatch):
    """A picture wider or higher than the run's images loses its sides; red there leaves no trace."""
    started(monkeypatch, tmp_path / "run")
    spec = train.load_run(tmp_path / "run")[0].spec
    for size, red in (((300, 80), np.s_[:, ::299]), ((48, 100), np.s_[::99])):
        pixels = np.full((size[1], size[0], 3), 100, "uint8")
        pixels[red] = 255, 0, 0
        Image.fromarray(pixels).save(tmp_path / "x.png")
        seen, shown = _read(tmp_path / "x.png", spec)
        assert seen.shape == (16, 24, 3) and (seen == 100).all() and (shown == 100).all()
        times = shown.shape[0] // 16
        assert shown.shape == (16 * times, 24 * times, 3) and 1 < times <= size[0] // 24, "sharper than what is seen"


def test_upright_as_the_camera_was_held(tmp_path, monkeypatch):
    started(monkeypatch, tmp_path / "run")
    spec = train.load_run(tmp_path / "run")[0].spec
    pixels = picture(tmp_path / "plain.png")
    turned, exif = Image.fromarray(np.rot90(pixels)), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert (_read(tmp_path / "turned.png", spec)[0] == pixels).all()


@pytest.mark.parametrize(
    "name, mode", [("x.jpg", "L"), ("x.gif", "P"), ("x.webp", "RGBA"), ("x.tiff", "CMYK"), ("x.bmp", "1")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_files(tmp_path, monkeypatch, name, mode, channels):
    started(monkeypatch, tmp_path / "run", channels=channels)
    picture(tmp_path / name, (7, 90), mode)
    found = predict(tmp_path / "run", [tmp_path / name])
    assert found.pictures[0].shape == (16, 24, channels) and found.probabilities.sum() == pytest.approx(1)


def test_table_and_figure(tmp_path, monkeypatch):
    started(monkeypatch, tmp_path / "run")
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file, size in zip(files, ((24, 16), (480, 320)), strict=True):
        picture(file, size)
    found = predict(tmp_path / "run", files)
    found = replace(found, probabilities=np.array([[0.2, 0.7, 0.1], [0.999, 0.0, 0.001]]), names=("1", "2"))
    assert found.table(top=2) == "1\n  bee        70.0%\n  ant        20.0%\n2\n  ant        99.9%\n  a cicada    0.1%"
    axes = found.figure().axes
    assert len(axes) == 2 * (1 + 3) and [axes[i].get_ylabel() for i in (0, 4)] == ["bee\n70.0%", "ant\n99.9%"]
    assert [ax.images[0].get_array().shape for ax in axes[::4]] == [(16, 24, 3), (80, 120, 3)]


def test_wrong_files(tmp_path, monkeypatch):
    started(monkeypatch, tmp_path / "run")
    picture(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((5, 5), "uint16")).save(tmp_path / "deep.png")
    for name, message in (
        ("half.png", "is not a readable image (.*truncated.*); repair or remove it"),
        ("text.png", "is not a readable image of a format that Pillow knows"),
        ("deep.png", "has pixels of mode I;16; save it with 8 bits per channel"),
        ("none.png", "is not there; give picture files"),
        (".", "is a folder; give picture files"),
    ):
        with pytest.raises(InputError, match=f"{name}.* {message}".replace("(", r"\(").replace(")", r"\)")):
            predict(tmp_path / "run", [tmp_path / "x.png", tmp_path / name])
    monkeypatch.setattr(sys.modules[predict.__module__], "MAX_PICTURE_PIXELS", 24 * 16 - 1)
    with pytest.raises(InputError, match=r"x.png has more than 383 pixels; make it smaller"):
        predict(tmp_path / "run", [tmp_path / "x.png"])


def test_clips_are_no_pictures(tmp_path, monkeypatch):
    split = sample_clips(np.random.default_rng(1), 8)
    monkeypatch.setattr(data, "load", lambda *_, **__: (split, split))
    for name, model in (("vit", MODEL), ("x21d", nn.X21DConfig(widths=(4,)))):
        train.start(train.TrainConfig("actors", model), tmp_path / name)
        picture(tmp_path / "x.png")
        with pytest.raises(InputError, match=f"{name} was trained on clips; predict takes pictures"):
            predict(tmp_path / name, [tmp_path / "x.png"])
