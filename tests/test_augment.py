"""Augmentation: each function against Pillow, bit for bit, or against a loop over images; and every bad input."""

from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from minitl import data, train
from minitl.backend import cuda_problem, to_device, to_numpy
from minitl.data import policies, transforms
from minitl.train import presets
from minitl.train.augmentation import training_batch


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and (problem := cuda_problem()):
        pytest.skip(problem)
    return request.param


def rng(seed=0):
    return np.random.default_rng(seed)


# --- crops, boxes and mixtures, each against a loop over images ---


@pytest.fixture
def images(device):
    return to_device(rng(7).integers(1, 256, size=(40, 6, 9, 3), dtype="uint8"), device)


@pytest.fixture
def targets(device):
    return to_device(np.eye(5, dtype="float32")[rng(8).integers(5, size=40)], device)


def augmented(function, *args):
    """Return ``function(*args)`` as NumPy arrays; fail if it changes an argument or returns one."""
    before = [to_numpy(a).copy() if hasattr(a, "dtype") else a for a in args]
    out = function(*args)
    for a, b in zip(args, before, strict=True):
        assert not hasattr(a, "dtype") or np.array_equal(to_numpy(a), b)
    return tuple(map(to_numpy, out)) if isinstance(out, tuple) else to_numpy(out)


def test_normalize_and_channel_stats(images):
    x = to_numpy(images).astype("float64") / 255
    mean, std = data.channel_stats(images)
    np.testing.assert_allclose(to_numpy(mean), x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(std), x.std((0, 1, 2)), rtol=1e-6)
    y = augmented(data.normalize, images, mean, std)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), atol=2e-6)
    assert to_numpy(data.channel_stats(images * 0)[1]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2, 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_random_crop(images, padding, flip, dtype):
    x, y = to_numpy(images), augmented(data.random_crop, images.astype(dtype), padding, rng(2), flip)
    generator, widths = rng(2), ((padding, padding), (padding, padding), (0, 0))
    mirrored = generator.random(40) < 0.5 if flip else np.zeros(40, bool)
    down, right = (generator.integers(-padding, padding + 1, size=40) for _ in "HW")
    for a, b, i, j, m in zip(x, y, down + padding, right + padding, mirrored, strict=True):
        assert np.array_equal(np.pad(a[:, ::-1] if m else a, widths, "reflect")[i : i + 6, j : j + 9], b)
    assert y.dtype == dtype and len(set(zip(down, right, strict=True))) > 10 * (padding > 0)
    assert 10 * flip <= mirrored.sum() < 30


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout(images, size):
    x, y = to_numpy(images), augmented(data.cutout, images, size, rng(2))
    generator = rng(2)
    rows, columns = (generator.integers(n, size=(40, 1))[:, 0] for n in (6, 9))
    for a, b, row, column in zip(x, y, rows, columns, strict=True):
        expected = a.copy()
        top, left = row - size // 2, column - size // 2
        expected[max(top, 0) : top + size, max(left, 0) : left + size] = 0
        assert np.array_equal(b, expected) and (b == 0).all(-1).sum() >= 1
    assert y.dtype == np.uint8


@pytest.mark.parametrize("p", [0, 0.6, 1])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_random_erasing(images, p, dtype):
    x = to_numpy(images)
    y = augmented(data.random_erasing, images.astype(dtype), rng(2), p)
    generator = rng(2)
    erased = generator.random((40, 1))[:, 0] < p
    area = 54 * generator.uniform(0.02, 0.33, size=(40, 1))[:, 0]
    aspect = np.exp(generator.uniform(np.log(0.3), np.log(3.3), size=(40, 1)))[:, 0]
    lengths = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    height = [min(max(round(value), 1), 6) for value in lengths[0]]
    top = generator.integers([[6 - h + 1] for h in height])[:, 0]
    width = [min(max(round(value), 1), 9) for value in lengths[1]]
    left = generator.integers([[9 - w + 1] for w in width])[:, 0]
    for i in range(40):
        expected = x[i].copy()
        if erased[i]:
            expected[top[i] : top[i] + height[i], left[i] : left[i] + width[i]] = 0
        assert np.array_equal(y[i], expected)
    assert y.dtype == dtype and ((y == 0).all(-1).any((1, 2)) == erased).all() and erased.any() == (p > 0)
    assert len(set(zip(height, width, strict=True))) > 10 and max(lengths[0]) > 6.5  # one is cut to the image


def test_mixup(images, targets):
    floats = data.normalize(images, [0.5] * 3, [0.2] * 3)
    y, t = augmented(data.mixup, floats, targets, 0.8, rng(2))
    generator = rng(2)
    share, other = generator.beta(0.8, 0.8), generator.permutation(40)
    x, old = to_numpy(floats), to_numpy(targets)
    for i, j in enumerate(other):
        np.testing.assert_allclose(y[i], share * x[i] + (1 - share) * x[j], atol=1e-6)
        np.testing.assert_allclose(t[i], share * old[i] + (1 - share) * old[j], atol=1e-6)
    assert y.dtype == t.dtype == np.float32 and 0.01 < share < 0.99


@pytest.mark.parametrize("seed", range(6))
def test_cutmix(images, targets, seed):
    y, t = augmented(data.cutmix, images, targets, 1.0, rng(seed))
    generator = rng(seed)
    share, other = generator.beta(1, 1), generator.permutation(40)
    x, old = to_numpy(images), to_numpy(targets)
    height, width = (round(n * (1 - share) ** 0.5) for n in (6, 9))
    top, left = generator.integers(6) - height // 2, generator.integers(9) - width // 2
    for i, j in enumerate(other):
        expected, pasted = x[i].copy(), 0
        for r in range(max(top, 0), min(top + height, 6)):
            for c in range(max(left, 0), min(left + width, 9)):
                expected[r, c], pasted = x[j][r, c], pasted + 1
        assert np.array_equal(y[i], expected)
        np.testing.assert_allclose(t[i], (1 - pasted / 54) * old[i] + pasted / 54 * old[j], atol=1e-6)
    assert y.dtype == np.uint8 and t.dtype == np.float32


def test_one_hot(device):
    labels = to_device(np.array([2, 0, 1, 2]), device)
    hot = to_numpy(data.one_hot(labels, 4))
    assert hot.dtype == np.float32 and hot.tolist() == np.eye(4)[[2, 0, 1, 2]].tolist()


UINT8, FLOAT, SOFT = np.zeros((4, 6, 6, 3), "uint8"), np.zeros((4, 6, 6, 3), "float32"), np.eye(4, dtype="float32")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.normalize(FLOAT, 0, 1), "uint8"),
        (lambda: data.normalize(UINT8, np.zeros(6), np.ones(6)), r"one number per channel, got float32\[6\]"),
        (lambda: data.normalize(UINT8, np.zeros(3), 1.0), "one number per channel"),
        (lambda: data.random_crop(UINT8[0], 1, rng()), r"array of images \(B, H, W, C\), got uint8\[6, 6, 3\]"),
        (lambda: data.random_crop([1], 1, rng()), r"images \(B, H, W, C\), got \[1\]"),
        (lambda: data.cutout(UINT8[0], 1, rng()), "expected an array of images"),
        (lambda: data.mixup(FLOAT[..., 0], SOFT, 1.0, rng()), "expected an array of images"),
        (lambda: data.cutmix(FLOAT[..., 0], SOFT, 1.0, rng()), "expected an array of images"),
        (lambda: data.random_crop(UINT8, 1.5, rng()), "integer"),
        (lambda: data.cutout(UINT8, 1.5, rng()), "integer"),
        (lambda: data.channel_stats(UINT8[0]), "uint8 images"),
        (lambda: data.random_crop(UINT8, 6, rng()), "padding .* is 0 to 5, got 6"),
        (lambda: data.random_crop(UINT8, -1, rng()), "padding"),
        (lambda: data.cutout(UINT8, 0, rng()), "size"),
        (lambda: data.mixup(UINT8, SOFT, 1.0, rng()), "normalize"),
        (lambda: data.mixup(FLOAT, SOFT[:3], 1.0, rng()), "soft targets"),
        (lambda: data.cutmix(FLOAT, np.arange(4), 1.0, rng()), "one_hot"),
        (lambda: data.cutmix(FLOAT, SOFT, 0, rng()), "alpha"),
        (lambda: data.cutmix(FLOAT, SOFT, np.inf, rng()), "alpha"),
        (lambda: data.mixup(FLOAT, SOFT, np.nan, rng()), "alpha"),
        (lambda: data.one_hot(np.array([0, 4]), 4), r"outside 0\.\.3"),
        (lambda: data.one_hot(np.array([-1, 3]), 4), r"outside 0\.\.3"),
        (lambda: data.one_hot(SOFT, 4), "integers"),
        (lambda: data.random_erasing(UINT8[0], rng(), 0.5), "expected an array of images"),
        (lambda: data.random_erasing(UINT8, rng(), p=1.5), "p is a probability"),
        (lambda: data.random_erasing(UINT8, rng(), p=np.nan), "p is a probability"),
        (lambda: transforms.invert(FLOAT), r"uint8 images .* got float32\[4, 6, 6, 3\]"),
        (lambda: transforms.color(UINT8[..., :2], 1), "1 or 3 channels"),
        (lambda: transforms.equalize(UINT8[0]), "uint8 images"),
        (lambda: transforms.autocontrast(UINT8[None]), "uint8 images"),
        (lambda: transforms.contrast(FLOAT, 1), "uint8 images"),
        (lambda: transforms.sharpness(FLOAT, 1), "uint8 images"),
        (lambda: transforms.lookup([1], np.zeros((1, 1, 256))), r"uint8 images .* got \[1\]"),
        (lambda: transforms.brightness(UINT8, np.ones(3)), r"\(3,\)"),
        (lambda: transforms.affine(FLOAT, np.zeros((4, 3, 3))), "uint8 images"),
        (lambda: transforms.affine(UINT8, np.zeros((4, 2, 3))), r"are \(4, 3, 3\), got float64\[4, 2, 3\]"),
        (lambda: data.rand_augment(UINT8, rng(), num_ops=1.5), "num_ops"),
        (lambda: data.rand_augment(UINT8, rng(), num_ops=-1), "num_ops"),
        (lambda: data.rand_augment(UINT8, rng(), magnitude=31), "magnitude is from 0 to 30"),
        (lambda: data.rand_augment(UINT8, rng(), p=-0.1), "p is a probability"),
        (lambda: data.rand_augment(FLOAT, rng()), "uint8 images"),
        (lambda: data.auto_augment(FLOAT, rng()), "uint8 images"),
    ],
)
def test_augmentation_refuses(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- transforms and policies, against Pillow one image at a time ---

SIZES = [(32, 32, 3), (17, 23, 3), (20, 15, 1), (2, 5, 3), (1, 1, 3)]


def pictures(size, n=120, seed=3):
    """Random images of all sorts: noise, few different values, one single value."""
    x = rng(seed).integers(256, size=(n, *size), dtype="uint8")
    low, span = (rng(seed).integers(1, top, size=(n // 2, 1, 1, size[-1])) for top in (200, 56))
    x[: n // 2] = low + x[: n // 2] % span
    x[0], x[1] = 0, 77
    return x


def one_by_one(function, x):
    """``function(picture, i)`` of each image, as Pillow's pictures."""
    return np.stack([np.asarray(function(to_pillow(image), i)).reshape(image.shape) for i, image in enumerate(x)])


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def warped(picture, matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix[:2].ravel().tolist())


N = 120
FACTORS = np.concatenate([[0, 1, 2, 0.5], rng(1).uniform(0, 2, N - 4)])
THRESHOLDS = np.concatenate([[0, 255, 256, 127.5], rng(1).integers(257, size=N - 4)])
BITS = rng(1).integers(1, 9, size=N)
ANGLES = np.concatenate([[0, 90, 180, -90, 45], rng(1).uniform(-180, 180, N - 5)])
SHEARS, SHIFTS = rng(2).uniform(-1, 1, size=(2, N)), rng(3).integers(-9, 10, size=(2, N))

PILLOW = {  # name: ours, Pillow's
    "brightness": (
        lambda x: transforms.brightness(x, FACTORS),
        lambda p, i: ImageEnhance.Brightness(p).enhance(FACTORS[i]),
    ),
    "contrast": (lambda x: transforms.contrast(x, FACTORS), lambda p, i: ImageEnhance.Contrast(p).enhance(FACTORS[i])),
    "color": (lambda x: transforms.color(x, FACTORS), lambda p, i: ImageEnhance.Color(p).enhance(FACTORS[i])),
    "sharpness": (
        lambda x: transforms.sharpness(x, FACTORS),
        lambda p, i: ImageEnhance.Sharpness(p).enhance(FACTORS[i]),
    ),
    "posterize": (lambda x: transforms.posterize(x, BITS), lambda p, i: ImageOps.posterize(p, int(BITS[i]))),
    "solarize": (lambda x: transforms.solarize(x, THRESHOLDS), lambda p, i: ImageOps.solarize(p, THRESHOLDS[i])),
    "invert": (transforms.invert, lambda p, i: ImageOps.invert(p)),
    "autocontrast": (transforms.autocontrast, lambda p, i: ImageOps.autocontrast(p)),
    "equalize": (transforms.equalize, lambda p, i: ImageOps.equalize(p)),
    "one factor for all": (lambda x: transforms.color(x, 0.3), lambda p, i: ImageEnhance.Color(p).enhance(0.3)),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PILLOW)
def test_as_pillow(name, size):
    ours, theirs = PILLOW[name]
    x = pictures(size)
    y = augmented(ours, x)
    assert y.dtype == np.uint8 and np.array_equal(y, one_by_one(theirs, x))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_warps_as_pillow(size):
    x, (height, width) = pictures(size), size[:2]
    shear = transforms.shear(*SHEARS)
    shift = transforms.translation(*SHIFTS)
    turn = transforms.rotation(ANGLES, height, width)
    for matrix in (transforms.shear(SHEARS[0], 0), transforms.shear(0, SHEARS[1]), shift, shear @ shift @ turn):
        y = augmented(transforms.affine, x, matrix)
        assert np.array_equal(y, one_by_one(lambda p, i, m=matrix: warped(p, m[i]), x))
    y = augmented(transforms.affine, x, turn)
    assert np.array_equal(y, one_by_one(lambda p, i: p.rotate(ANGLES[i]), x))


def test_the_left_factor_of_a_product_is_done_first():
    """Shifts and quarter turns lose nothing, so that one gather is the same as two."""
    x = pictures((8, 8, 3))
    shift, turn = transforms.translation(2, -1), transforms.rotation(90, 8, 8)
    for first, second in ((shift, turn), (turn, shift)):
        twice = transforms.affine(transforms.affine(x, first), second)
        assert np.array_equal(transforms.affine(x, first @ second), twice)
    assert np.array_equal(transforms.affine(x, shift)[:, :-1, 2:], x[:, 1:, :-2])


def test_lookup_for_each_channel():
    x, table = pictures((4, 5, 3)), rng(5).integers(256, size=(120, 3, 256), dtype="uint8")
    y = augmented(transforms.lookup, x, table)
    for i in range(120):
        for c in range(3):
            assert np.array_equal(y[i, ..., c], table[i, c][x[i, ..., c]])


def pillow_op(picture, name, level):
    """One operation of a policy on one picture, from torchvision's documentation of ranges."""
    width, height = picture.size
    matrices = {
        "ShearX": (1, 0.3 * level, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.3 * level, 1, 0),
        "TranslateX": (1, 0, -int(150 / 331 * width * level), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(150 / 331 * height * level)),
    }
    if name in matrices:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrices[name])
    enhance = {"Brightness", "Color", "Contrast", "Sharpness"}
    if name in enhance:
        return getattr(ImageEnhance, name)(picture).enhance(1 + 0.9 * level)
    return {
        "Identity": lambda: picture,
        "Rotate": lambda: picture.rotate(30 * level),
        "Posterize": lambda: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
        "Solarize": lambda: ImageOps.solarize(picture, 255 * (1 - abs(level))),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "Invert": lambda: ImageOps.invert(picture),
    }[name]()


@pytest.mark.parametrize("size", [(32, 32, 3), (20, 15, 1)], ids=str)
@pytest.mark.parametrize("num_ops, magnitude, p", [(2, 9, 1.0), (3, 30, 0.5), (1, 13.5, 1.0), (0, 9, 1.0)])
def test_rand_augment(device, size, num_ops, magnitude, p):
    x = pictures(size)
    y = augmented(data.rand_augment, to_device(x, device), rng(2), num_ops, magnitude, p)
    generator, steps = rng(2), []
    for _ in range(num_ops):
        ops, done, sign = generator.integers(14, size=N), generator.random(N) < p, generator.integers(2, size=N)
        steps.append((np.where(done, ops, 0), (1 - 2 * sign) * magnitude / 30))
        assert set(ops) == set(range(14))

    def theirs(picture, i):
        for ops, levels in steps:
            picture = pillow_op(picture, list(policies.OPERATIONS)[ops[i]], levels[i])
        return picture

    assert np.array_equal(y, one_by_one(theirs, x))


def test_auto_augment(device):
    x = pictures((32, 32, 3))
    y = augmented(data.auto_augment, to_device(x, device), rng(2))
    generator, policy = rng(2), policies.CIFAR10_POLICY
    chosen = generator.integers(25, size=N)
    draws = [(generator.random(N), 1 - 2 * generator.integers(2, size=N)) for _ in range(2)]
    assert len(policy) == 25 == len(set(chosen))

    def theirs(picture, i):
        for (name, p, magnitude), (draw, sign) in zip(policy[chosen[i]], draws, strict=True):
            if draw[i] < p:
                picture = pillow_op(picture, name, sign[i] * magnitude / 9)
        return picture

    assert np.array_equal(y, one_by_one(theirs, x))


def test_policies_of_few_images():
    """Fewer than there are operations, and none at all."""
    for n in (0, 1, 3):
        x = pictures((8, 8, 3))[:n]
        assert data.rand_augment(x, rng()).shape == data.auto_augment(x, rng()).shape == (n, 8, 8, 3)


def test_the_policy_is_well_formed():
    assert len(policies.CIFAR10_POLICY) == 25
    for sub_policy in policies.CIFAR10_POLICY:
        assert len(sub_policy) == 2
        for name, p, magnitude in sub_policy:
            assert name in policies.OPERATIONS and 0 <= p <= 1 and magnitude in range(10)


# --- a whole batch ---


@pytest.fixture
def stand_in():
    """``fake_cupy`` in CuPy's place."""
    with fake_cupy.installed():
        yield fake_cupy.cupy


@pytest.fixture
def uploads(stand_in, monkeypatch):
    """The sizes in bytes of all host arrays that are copied to the device."""
    sizes, asarray = [], stand_in.asarray

    def noted(x, dtype=None):
        if not isinstance(x, stand_in.ndarray):
            sizes.append(np.asarray(x).nbytes)
        return asarray(x, dtype)

    monkeypatch.setitem(vars(stand_in), "asarray", noted)
    return sizes


MOST = replace(train.TrainConfig(), flip=True, crop=4, erasing=0.5, cutout=8, mixup=0.4)


@pytest.mark.parametrize("policy", [{"rand_augment": 3}, {"auto_augment": True}], ids=str)
def test_a_batch_on_a_gpu_is_that_of_the_cpu(stand_in, policy):
    """From crops to mixing, by all operations that the policy has."""
    config = replace(MOST, **policy)
    images, labels = pictures((32, 32, 3)), np.arange(N) % 8
    mean, std = data.channel_stats(images)
    expected = training_batch(images, labels, config, 8, mean, std, rng(3))
    found = training_batch(stand_in.asarray(images), stand_in.asarray(labels), config, 8, mean, std, rng(3))
    for own, x in zip(found, expected, strict=True):
        assert isinstance(own, stand_in.ndarray) and np.array_equal(to_numpy(own), x)


@pytest.mark.parametrize("seed, launches", [(0, 22), (1, 21)])  # mixup, cutmix
def test_r1_takes_few_launches_and_little_from_the_host(stand_in, uploads, seed, launches):
    config, images, labels = presets.preset("cifar-r1"), pictures((32, 32, 3)), np.arange(N) % 10
    mean, std = data.channel_stats(images)
    expected = training_batch(images, labels, config, 10, mean, std, rng(seed))
    images, labels = stand_in.asarray(images), stand_in.asarray(labels)
    uploads.clear()
    with fake_cupy.strict() as state:
        found = training_batch(images, labels, config, 10, mean, std, rng(seed))
    assert state.launches == launches and len(uploads) <= 8 and max(uploads) <= 28 * N
    for own, x in zip(found, expected, strict=True):
        assert np.array_equal(to_numpy(own), x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operations_on_a_gpu_are_those_of_the_cpu(stand_in, size):
    """Each on some images of all sorts, in one launch."""
    from minitl.fast.cuda import augment

    x = pictures(size)
    matrices = transforms.shear(*SHEARS) @ transforms.translation(*SHIFTS) @ transforms.rotation(ANGLES, *size[:2])
    amounts = {"affine": matrices, "posterize": BITS, "solarize": np.ceil(THRESHOLDS)}
    amounts |= dict.fromkeys(("brightness", "contrast", "color", "sharpness"), FACTORS)
    amounts |= dict.fromkeys(("autocontrast", "equalize", "invert"))
    operations, expected = [], x.copy()
    for i, (name, amount) in enumerate(amounts.items()):
        indices = np.arange(i, N, len(amounts) + 1)  # and some images stay as they are
        chosen = None if amount is None else amount[indices]
        expected[indices] = getattr(transforms, name)(x[indices], *([] if amount is None else [chosen]))
        operations.append((name, indices, transforms.fixed_point(chosen) if name == "affine" else chosen))
    images = stand_in.asarray(x)
    with fake_cupy.strict() as state:
        found = augment.transform(images, operations)
    assert state.launches == 1 and np.array_equal(to_numpy(found), expected)


def test_autocontrast_on_a_gpu_rounds_as_doubles_do(stand_in):
    """Images with all values of a range, which few of them show."""
    from minitl.fast.cuda import augment

    low, width = rng(4).integers([[[0]], [[1]]], [[[100]], [[156]]], size=(2, 140, 3))
    x = low[:, None, None] + np.arange(256)[:, None] % (width[:, None, None] + 1)  # (140, 1, 256, 3)
    x = x.astype("uint8")
    exact = 255 * (x - low[:, None, None]) // width[:, None, None]
    expected = transforms.autocontrast(x)
    assert 300 < (expected != exact).sum() < 2000
    found = augment.transform(stand_in.asarray(x), [("autocontrast", slice(None), None)])
    assert np.array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("size, padding", [((6, 9, 3), 5), ((5, 4, 2), 0), ((1, 3, 1), 0)], ids=str)
def test_crops_on_a_gpu_are_those_of_the_cpu(stand_in, size, padding):
    x = pictures(size)
    images = stand_in.asarray(x)
    with fake_cupy.strict() as state:
        found = data.random_crop(images, padding, rng(5), flip=True)
    assert state.launches == 1
    assert np.array_equal(to_numpy(found), data.random_crop(x, padding, rng(5), flip=True))


def test_what_a_gpu_does_not_augment(stand_in):
    """No images at all, and images that are not of 8 bits or have two channels."""
    nothing, x = stand_in.asarray(UINT8[:0]), stand_in.asarray(FLOAT)
    assert data.rand_augment(nothing, rng()).shape == data.random_crop(nothing, 2, rng()).shape == (0, 6, 6, 3)
    for images in (x, stand_in.asarray(UINT8[..., :2])):
        with pytest.raises(TypeError, match="1 or 3 channels"):
            data.rand_augment(images, rng())
    cropped = data.random_crop(x, 2, rng(5))
    assert cropped.dtype == "float32" and np.array_equal(to_numpy(cropped), data.random_crop(FLOAT, 2, rng(5)))


def test_the_host_does_not_wait_for_labels(stand_in):
    labels = stand_in.asarray(np.array([2, 0, 4]))  # the last one is wrong, which would take a look to see
    with fake_cupy.strict():
        hot = data.one_hot(labels, 4)
    assert to_numpy(hot).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
