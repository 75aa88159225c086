"""Draw maps that find the object during training: ``python notebooks/make_animation.py`` makes images/finding.gif.

The default model of ``minitl train`` learns CLUTTER for five epochs, half a minute on one core of an AMD EPYC. At 60
steps, the mean of its eight maps on the first four test images becomes a frame. Accuracy and map mass are those of the
next 500 test images; a black mark shows what they would be by chance.
"""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minitl import data, metrics, nn, no_grad, ops, optim

FILE = Path(__file__).parent / "images" / "finding.gif"
SHOWN, SCORED = slice(0, 4), slice(4, 504)  # of the test images
FRAMES, EPOCHS, BATCH = 60, 5, 100
MILLISECONDS, HOLD = 150, 2500  # for each frame, and for the last one
SIDE, GAP, MARGIN, BAR = 160, 12, 100, 24  # pixels: a picture, between pictures, for text, and a bar
WIDTH, HEIGHT = MARGIN + 4 * (SIDE + GAP), 2 * (SIDE + GAP) + 3 * BAR + 2 * GAP
FONT = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 15)


def train(train_set, test_set, epochs=EPOCHS):
    """Train, and yield (step, number of steps, accuracy, map mass, maps (4, 8, 8)) for each frame."""
    mean, std = data.channel_stats(train_set.images)
    model = nn.ViT(nn.ViTConfig(version="1.1", pre_norm=False), train_set.spec, np.random.default_rng(0))
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    loader = data.Loader(train_set, BATCH, shuffle=True, rng=np.random.default_rng(0))
    batches = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    steps = epochs * len(loader)
    looks = {round(steps * (i / FRAMES) ** 2) for i in range(FRAMES + 1)}  # close together at first
    for step in range(steps + 1):
        if step in looks:
            yield step, steps, *look(model, test_set, mean, std)
        if step == steps:
            return
        images, labels = next(batches)
        loss = ops.cross_entropy(model(data.normalize(images, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, steps, steps // 10, 4e-3)
        optimizer.step()


def look(model, test_set, mean, std):
    """Return accuracy and map mass on the scored images, and the mean map of each shown image, (4, 8, 8)."""
    images = data.normalize(test_set.images, mean, std)
    with no_grad():
        logits, maps = model(images[SCORED]).data, model.maps(images).data
    mass = metrics.map_mass(maps[SCORED], test_set.boxes[SCORED], test_set.spec.image_size).mean()
    return (logits.argmax(1) == test_set.labels[SCORED]).mean(), mass, maps[SHOWN].mean(1)


def frame(shown, step, steps, accuracy, mass, maps):
    """Return a picture: the images of a Dataset, and below them the same, at each place as bright as the map's root.

    The root shows small weights, too. An even map leaves an image as it is.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    side = shown.spec.image_size[0]
    light = np.sqrt(maps / maps.max((1, 2), keepdims=True))
    light = light.repeat(side // maps.shape[1], 1).repeat(side // maps.shape[2], 2)[..., None]
    rows = {"image": shown.images, "where the\n8 tokens\nlook": shown.images * (0.1 + 0.9 * light)}
    for j, (name, images) in enumerate(rows.items()):
        y = GAP + j * (SIDE + GAP)
        draw.text((MARGIN - GAP, y + SIDE // 2), name, "black", FONT, "rm", align="right")
        for i, (image, box) in enumerate(zip(images, shown.boxes * SIDE // side, strict=True)):
            x = MARGIN + i * (SIDE + GAP)
            picture.paste(
                Image.fromarray(image.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y)
            )
            top, left, bottom, right = box.tolist()
            draw.rectangle((x + left, y + top, x + right - 1, y + bottom - 1), outline="white", width=2)
    y = 2 * (SIDE + GAP) + GAP
    chance = 1 / shown.spec.num_classes, metrics.box_share(shown.boxes, shown.spec.image_size)
    bar(draw, y, "step", step / steps, str(step))
    bar(draw, y + BAR, "accuracy", accuracy, f"{accuracy:.0%}", chance[0])
    bar(draw, y + 2 * BAR, "map mass", mass, f"{mass:.2f}", chance[1])
    return picture


def bar(draw, y, name, share, text, chance=None):
    """Draw a bar of which a share is dark, with a mark where chance would be."""
    left, right, middle = MARGIN, WIDTH - MARGIN, y + BAR // 2
    draw.text((left - GAP, middle), name, "black", FONT, "rm")
    draw.text((right + GAP, middle), text, "black", FONT, "lm")
    draw.rectangle((left, y + 4, right, y + BAR - 4), "#d8d8d8")
    draw.rectangle((left, y + 4, left + round(share * (right - left)), y + BAR - 4), "#606060")
    if chance:
        x = left + round(chance * (right - left))
        draw.line((x, y + 1, x, y + BAR - 1), "black", 2)


def save(frames, file):
    """Write frames as a GIF that loops and holds the last frame. All have one palette, so that nothing flickers."""
    some = frames[:: max(1, len(frames) // 4)]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(some)))
    for i, picture in enumerate(some):
        sheet.paste(picture, (0, i * HEIGHT))
    palette = sheet.quantize(256, dither=Image.Dither.NONE)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames)
    durations = [MILLISECONDS] * len(others) + [HOLD]
    first.save(file, save_all=True, append_images=others, duration=durations, loop=0)


if __name__ == "__main__":
    train_set, test_set = data.clutter(20_000, SCORED.stop)
    save([frame(test_set.take(SHOWN), *seen) for seen in train(train_set, test_set)], FILE)
    print(f"{FILE.name}: {FILE.stat().st_size / 1000:.0f} kB")
