# %% [markdown]
# # 11 · CIFAR-10, on a laptop and on a GPU
#
# Generated images give clean answers. On photographs, much of the accuracy comes from ingredients other than the model.
# This lesson takes a recipe for CIFAR-10 apart, derives its pooling, and the batch norm that it does without, reads
# training logs, and says what learned tokens are worth there: less than on CLUTTER.
#
# | | |
# |---|---|
# | **Goal** | know what each ingredient of a recipe is worth, read a log, and run the same code on a GPU |
# | **Time** | 50 minutes to read, 20 seconds to run on two cores of an AMD EPYC |
# | **You need** | [04](04_attention.ipynb) for LayerNorm, [05](05_vit.ipynb), [06](06_tokenlearner.ipynb) |

# %%
import itertools
import os
import time
import warnings
from pathlib import Path

import numpy as np
from checks import check
from lesson import FAST, bars, curves, images, load_curve

from minitl import Tensor, check_gradients, data, flops, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.backend import array_module, cuda_problem, to_device
from minitl.paper import ablate
from minitl.train import presets

rng = np.random.default_rng(0)

# %% [markdown]
# ## Photographs of 32 × 32 pixels
#
# CIFAR-10 (Krizhevsky, 2009) has 50,000 photographs to train on and 10,000 to test on, in ten classes of equal size:
# airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck. In the official binary file a photograph is
# 3,073 bytes: its label, then 1,024 bytes of red, 1,024 of green and 1,024 of blue, each row by row. Two lines read
# it. Here we write two images in this format and read them back.

# %%
few = data.sample(rng, 2)
planes = few.images.transpose(0, 3, 1, 2)  # all of red, then green, then blue
raw = b"".join(bytes([label]) + plane.tobytes() for plane, label in zip(planes, few.labels, strict=True))


def decode(raw):
    """Bytes -> images (N, 32, 32, 3) and labels (N,)"""
    rows = np.frombuffer(raw, "uint8").reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


# %%
pixels, labels = decode(raw)
assert len(raw) == 2 * 3073 and (pixels == few.images).all() and (labels == few.labels).all()
wrong = np.frombuffer(raw, "uint8").reshape(-1, 3073)[:, 1:].reshape(-1, 32, 32, 3)
alt = "Two images read correctly, and the same bytes read with colors last, which gives gray noise in stripes."
images({"": [*pixels, *wrong]}, alt=alt, titles=["right", "right", "colors last", "colors last"])

# %% [markdown]
# These lessons fetch nothing. If `minitl train cifar10 --preset cifar-cpu` has already put its archive (162 MB) into
# the cache folder, the cells below use the photographs; otherwise they use CLUTTER. All curves and tables of CIFAR-10
# are stored ones.

# %%
folder = Path(os.environ.get("MINITL_DATA") or "~/.cache/minitl").expanduser()
found = (folder / "cifar-10-binary.tar.gz").exists()
with warnings.catch_warnings(action="ignore"):  # a downloader that is not needed here may miss a progress bar
    train_set, test_set = data.load("cifar10") if found else data.clutter(8000, 1000)
print("live cells use", "CIFAR-10" if found else "CLUTTER, as there is no cifar-10-binary.tar.gz in the cache folder")
alt = "Six small training images with the names of their classes."
images({"": train_set.images[:6]}, alt=alt, titles=[train_set.classes[label] for label in train_set.labels[:6]])
mean, std = data.channel_stats(train_set.images)

# %% [markdown]
# ## The recipe, and what each part is worth
#
# The preset `cifar-cpu` trains a small ViT in a few minutes on a laptop:
#
# | part | choice |
# |---|---|
# | stem | two 3 × 3 convolutions with max pooling turn 32 × 32 pixels into a grid of 8 × 8 tokens |
# | tokens | TokenLearner 1.1 makes 16 of the 64, before the first of two blocks of width 64 |
# | optimizer | Muon, with warm-up and cosine |
# | data | each image mirrored with probability 1/2 |
#
# `minitl ablate recipe` changes one part of it at a time (*cifar-cpu* is the recipe unchanged) and trains for half as
# many epochs, with two seeds where time allowed. Some names are explained below: crops, EMA, and *all regularization*,
# which is crops, mixup, cutmix, label smoothing and random changes of color and shape. *Sequence pooling* gives the
# head a mean of the tokens with learned weights.

# %%
command, table = load_curve("cifar-recipe")
by_seed = {}
for name, score in zip(table["name"], table["accuracy"], strict=True):
    by_seed.setdefault(name, []).append(score)
worth = {name: np.mean(scores) for name, scores in by_seed.items()}
print(f"{command}\nlargest difference between two seeds: {max(np.ptp(scores) for scores in by_seed.values()):.3f}")
assert worth["cifar-cpu"] - worth["AdamW"] > 0.05 and worth["cifar-cpu"] - worth["patch stem"] > 0.1

# %%
alt = "Bars of test accuracy: a patch stem and AdamW cost most, and most other changes only a few percent."
bars(dict(sorted(worth.items(), key=lambda item: -item[1])), "test accuracy after 3 epochs", alt=alt, xlim=(0, 0.9))

# %% [markdown]
# - **The stem and the optimizer are worth most.** A patch embedding is one linear layer on separate squares; the stem
#   has two layers with overlapping windows.
# - For both optimizers, the better of two learning rates was taken.
# - Differences of one percent mean little: two seeds may differ by more.
# - Crops do not help here, and all regularization together *lowers* the accuracy. *Regularization* is what works
#   against memorizing, and in three epochs nothing has been memorized yet.
#
# AdamW scales each entry of a gradient by its own history. Muon takes the running mean of a matrix's gradients,
# divides it by its norm to get $X$, and makes its singular values about equal, so that directions with small gradients
# learn as fast as those with large ones. Five rounds of products do it:
#
# $$X \leftarrow a X + b\, X X^\top X + c\, X X^\top X X^\top X$$
#
# With $X = U \Sigma V^\top$ each term begins with $U$ and ends with $V^\top$, since $U^\top U$ and $V^\top V$ are
# identities. So a round turns each singular value $s$ into $a s + b s^3 + c s^5$. The numbers $a, b, c$ are chosen
# such that small $s$ grow fast ($a > 3$) and those near 1 stay near it.

# %%
gradient = rng.standard_normal((64, 64)) @ np.diag(1 / np.arange(1, 65)) @ rng.standard_normal((64, 64))
X = gradient / np.linalg.norm(gradient)  # no singular value is above 1
for _ in range(5):
    X = 3.4445 * X - 4.775 * X @ X.T @ X + 2.0315 * X @ X.T @ X @ X.T @ X
assert np.allclose(X, optim.orthogonal(gradient))  # minitl's

# %%
values = {"gradient": gradient / np.linalg.norm(gradient), "Muon's update": X}
lines = {name: (np.arange(1, 65), np.linalg.svd(x)[1]) for name, x in values.items()}
alt = "Singular values of the gradient fall by factors of thousands; most of those of Muon's update stay near one."
curves(lines, "rank", "singular value", alt=alt, yscale="log", ylim=(1e-4, 3))
assert lines["Muon's update"][1][:40].min() > 0.6 and lines["Muon's update"][1].max() < 1.3

# %% [markdown]
# All values but the last few, which were too small for five rounds, are now near 1.
#
# ## Pooling, and its gradient
#
# The stem halves an image by **max pooling**: $y_j$ is the largest of the entries $x_i$ in window $j$. Windows of
# 3 × 3 pixels start at every second pixel, so they overlap. What is $dx_i = \partial L / \partial x_i$?
#
# If $x_i$ is the largest in window $j$, then $y_j = x_i$, with slope 1. If it is not, moving it a little changes
# nothing: slope 0. An entry lies in several windows, and by the chain rule what they contribute adds up:
#
# $$dx_i = \sum_{j \,\ni\, i} dy_j \,[\,x_i \text{ is the largest in } j\,]$$
#
# The sum is over the windows $j$ that contain $i$; the bracket is 1 if it is true, else 0. For **average pooling**
# over windows of $k \times k$, $y_j = \frac{1}{k^2} \sum_{i \in j} x_i$. Each entry of a window has slope $1 / k^2$:
#
# $$dx_i = \sum_{j \,\ni\, i} \frac{dy_j}{k^2}$$
#
# Both cut out the windows, and add what comes back where it belongs. (Where two entries tie, the maximum has no slope;
# we let the first of them win.)


# %%
def windows(x, k, stride):
    """(B, H, W, C) -> (B, Ho, Wo, C, k, k)"""
    return np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]


def scatter(dX, shape, stride):
    """(B, Ho, Wo, C, k, k) -> dx of this shape: each window is added where it came from."""
    dx, (_, Ho, Wo, _, k, _) = np.zeros(shape), dX.shape
    for i, j in np.ndindex(k, k):
        dx[:, i : i + Ho * stride : stride, j : j + Wo * stride : stride] += dX[..., i, j]
    return dx


@op
def max_pool(x, *, k, stride):
    X = windows(x, k, stride)
    flat = X.reshape(*X.shape[:4], k * k)
    largest = (flat.argmax(-1)[..., None] == np.arange(k * k)).reshape(X.shape)  # one entry in each window
    return X.max((-2, -1)), lambda dy: scatter(dy[..., None, None] * largest, x.shape, stride)


@op
def avg_pool(x, *, k, stride):
    X = windows(x, k, stride)
    return X.mean((-2, -1)), lambda dy: scatter(np.broadcast_to(dy[..., None, None] / k**2, X.shape), x.shape, stride)


# %%
x = rng.standard_normal((2, 7, 9, 3))
for mine, minitls in ((max_pool, ops.max_pool2d), (avg_pool, ops.avg_pool2d)):
    check_gradients(lambda x, mine=mine: mine(x, k=3, stride=2), x)
    assert np.allclose(mine(x, k=3, stride=2).data, minitls(x, kernel_size=3, stride=2).data)

gray = train_set.images[:1].mean(-1, keepdims=True) / 255
row = {"image": gray[0, ..., 0]}
for name, pool in (("max", max_pool), ("average", avg_pool)):
    image = Tensor(gray, requires_grad=True)
    y = pool(image, k=3, stride=2)
    y.backward(np.ones(y.shape))
    row |= {f"{name} pooling": y.data[0, ..., 0], f"gradient, {name}": image.grad[0, ..., 0]}

# %%
alt = "An image, its two poolings and their gradients: scattered pixels for the maximum, a grid for the average."
images({"": list(row.values())}, alt=alt, titles=list(row), side=1.5)

# %% [markdown]
# Here $dy = 1$ everywhere. The gradient of the maximum goes to few pixels, and the brightest get it from several
# windows. The gradient of the average goes everywhere, and more of it to pixels in two or four windows. The last row
# and column lie in no window.
#
# The classic mistake is to *write* what comes back instead of adding it. In windows that do not overlap it makes no
# difference, and a check on such windows passes:


# %%
@op
def forgetful_max_pool(x, *, k, stride):
    X = windows(x, k, stride)

    def backward(dy):
        dx = np.zeros(x.shape)
        for b, i, j, c in np.ndindex(*dy.shape):
            row, column = np.unravel_index(X[b, i, j, c].argmax(), (k, k))
            dx[b, i * stride + row, j * stride + column, c] = dy[b, i, j, c]  # where is +=?
        return dx

    return X.max((-2, -1)), backward


check_gradients(lambda x: forgetful_max_pool(x, k=2, stride=2), x)
try:
    check_gradients(lambda x: forgetful_max_pool(x, k=3, stride=2), x)
except AssertionError as error:
    print(error)

# %% [markdown]
# The stem has two rounds of convolution, max pooling and ReLU. Here the pooling has a border of one pixel, which never
# wins, so that 32 rows become 16 and then 8. The ReLU, $\max(x, 0)$, could as well come before the pooling: it keeps
# the order of numbers, so the largest stays the largest. After the pooling there are fewer numbers to treat.

# %%
config = presets.preset("cifar-cpu").model
stem = nn.ViT(config, train_set.spec, rng).patch_embed
x = Tensor(data.normalize(train_set.images[:4], mean, std))
with no_grad():
    y = relu_first = x
    for conv in stem.convs:
        y = ops.relu(ops.max_pool2d(conv(y), kernel_size=3, stride=2, padding=1))
        relu_first = ops.max_pool2d(ops.relu(conv(relu_first)), kernel_size=3, stride=2, padding=1)
    assert np.allclose(y.data, stem(x).data) and np.allclose(y.data, relu_first.data)
print("pixels", x.shape, "-> tokens", y.shape)

# %%
parts = flops.count(config, nn.DataSpec())
names = ("stem", "TokenLearner", "two blocks", "head")
values = {name: part.times * part.cost.macs / 1e6 for name, part in zip(names, parts, strict=True)}
assert values["stem"] > sum(values.values()) / 2  # what the stem is worth, it also costs
alt = "Bars of multiply-adds: the convolutional stem takes most of them, the two blocks on 16 tokens less."
bars(values, "million multiply-adds per image", alt=alt, text="{:.2f}")

# %% [markdown]
# ## Batch norm
#
# This recipe has no batch norm, but two models of the paper do: the spatial gate that TokenLearner is compared with,
# and the convolutional video model X(2+1)D. LayerNorm (lesson 04) normalizes each token over its channels. **Batch
# norm** normalizes each channel over all images and places. Let $x_1, \dots, x_R$ be the values of one channel,
# $R = B H W$:
#
# $$n_i = \frac{x_i - \mu}{s}, \quad \mu = \frac1R \sum_i x_i, \quad s = \sqrt{\frac1R \sum_i (x_i - \mu)^2 + \epsilon},
# \quad y_i = w\, n_i + b$$
#
# with one learned $w$ and one $b$ for the channel. The derivation is that of lesson 04, for the $R$ numbers of a
# channel: $x_j$ acts on $n_i$ directly, through $\mu$, with $\partial \mu / \partial x_j = 1/R$, and through $s$, with
# $\partial s / \partial x_j = n_j / R$. The quotient rule:
#
# $$\frac{\partial n_i}{\partial x_j} = \frac{\delta_{ij} - \frac1R}{s} - \frac{x_i - \mu}{s^2} \frac{n_j}{R}
# = \frac1s \left( \delta_{ij} - \frac1R - \frac{n_i n_j}{R} \right) .$$
#
# With $g_i = w\, dy_i$, the sum over $i$ gives
#
# $$dx_j = \frac1s \left( g_j - \text{mean}(g) - n_j\, \text{mean}(g\, n) \right),
# \qquad dw = \sum_i dy_i\, n_i, \qquad db = \sum_i dy_i .$$
#
# New is what the means run over: each image gets a gradient from all images of its batch.


# %%
@op
def norm_over_batch(x, w, b, *, forget=False):
    axes = tuple(range(x.ndim - 1))
    s = np.sqrt(x.var(axes) + 1e-5)
    n = (x - x.mean(axes)) / s

    def backward(dy):
        g = dy * w
        dx = g / s if forget else (g - g.mean(axes) - n * (g * n).mean(axes)) / s
        return dx, dy * n, dy  # the engine sums the last two over the axes along which w and b were broadcast

    return w * n + b, backward


x, w, b = 3 + 2 * rng.standard_normal((4, 3, 3, 2)), rng.standard_normal(2), rng.standard_normal(2)
check_gradients(norm_over_batch, x, w, b)
t = Tensor(x, requires_grad=True)
norm_over_batch(t, w, b)[0].sum().backward()  # a loss of image 0 alone
assert np.abs(t.grad[1:]).max() > 1e-3  # reaches the other images
running = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
assert np.allclose(norm_over_batch(x, w, b).data, ops.batch_norm(x, w, b, **running).data)  # minitl's
try:
    check_gradients(lambda x: norm_over_batch(x, w, b, forget=True), x)  # as if mean and s did not depend on x
except AssertionError as error:
    print(error)

# %% [markdown]
# In training, the answer for one image depends on the others in its batch. In use, nobody wants that, so batch norm
# keeps **running statistics**, $r \leftarrow 0.9\, r + 0.1\, \mu$ and the same for the variance, and uses them after
# `model.eval()`.

# %%
layer, means, averages = nn.BatchNorm2d(1), [], []
for _ in range(60):
    batch = 3 + 2 * rng.standard_normal((2, 2, 2, 1)).astype("float32")  # the true mean is 3
    layer(Tensor(batch))
    means.append(batch.mean())
    averages.append(layer.running_mean[0])
assert not np.allclose(layer(Tensor(batch)).data[:1], layer(Tensor(batch[:1])).data)
layer.eval()
assert np.allclose(layer(Tensor(batch)).data[:1], layer(Tensor(batch[:1])).data)  # whatever else is in the batch

# %%
steps = np.arange(1, 61)
lines = {"mean of the batch": (steps, means), "running mean": (steps, averages), "true mean": (steps, np.full(60, 3))}
alt = "Means of small batches jump around 3; the running mean rises from 0 to 3 in about 30 steps and stays near it."
curves(lines, "step", "mean", alt=alt)

# %% [markdown]
# ## Augmentation as array operations
#
# A mirrored truck is a truck. Augmentation makes new images from old ones, a whole batch at a time, without a loop
# over images. **Crop and flip** shift and mirror an image by an index for each row and column. **Mixup** blends two
# images and their labels in the same proportion, which is drawn anew for each batch. **Cutmix** pastes a box of one
# image into the other, and the labels count by area. A label is then a distribution $t$ over the $K$ classes, and
# cross-entropy is $L = -\frac1B \sum_{bk} t_{bk} \ln p_{bk}$.


# %%
def crop_and_flip(images, padding, rng):
    """(B, H, W, C) -> the same shape"""
    B, H, W, _ = images.shape
    mirrored = rng.random(B) < 0.5
    rows, columns = (np.arange(n) + rng.integers(-padding, padding + 1, size=(B, 1)) for n in (H, W))
    columns = np.where(mirrored[:, None], W - 1 - columns, columns)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    return padded[np.arange(B)[:, None, None], padding + rows[:, :, None], padding + columns[:, None, :]]


batch, labels, K = train_set.images[:5], train_set.labels[:5], len(train_set.classes)
cropped = crop_and_flip(batch, 4, np.random.default_rng(0))
assert (cropped == data.random_crop(batch, 4, np.random.default_rng(0), flip=True)).all()

x, t = batch.astype("float32") / 255, data.one_hot(labels, K)
draws = np.random.default_rng(4)
share, other = draws.beta(0.8, 0.8), draws.permutation(len(x))
mixed, t_mixed = share * x + (1 - share) * x[other], share * t + (1 - share) * t[other]
pasted, t_pasted = data.cutmix(x, t, 0.8, np.random.default_rng(4))
assert np.allclose(mixed, data.mixup(x, t, 0.8, np.random.default_rng(4))[0])
print(f"mixup leaves {share:.0%} of each image, cutmix {t_pasted[t == 1].min():.0%}")

# %%
rows = {"original": batch, "crop and flip": cropped, "mixup": mixed, "cutmix": pasted}
alt = "Four rows of the same five images: as they are, shifted and mirrored, blended in pairs, with pasted boxes."
images(rows, alt=alt, side=0.75)

# %% [markdown]
# ## Label smoothing
#
# Cross-entropy always asks for more: a larger logit of the true class always lowers the loss. **Label smoothing**
# spreads a share $s$ of each target over all $K$ classes, $t' = (1 - s)\, t + s / K$. The gradient with respect to the
# logits of an image is $p - t'$, as for any target that adds up to 1, and it is zero where $p = t'$: at $p = 0.91$ for
# the true class if $s = 0.1$ and $K = 10$. Beyond that point, being more certain costs.

# %%
logits, s = rng.standard_normal((5, K)).astype("float32"), 0.1
by_hand = -(((1 - s) * t + s / K) * ops.log_softmax(logits, axis=1).data).sum(1).mean()
assert np.isclose(by_hand, ops.cross_entropy(logits, labels, label_smoothing=s).item(), rtol=1e-5)
p = np.linspace(0.1, 0.999, 900)  # of the true class; nine others share the rest
lines = {f"s = {s}": (p, -(1 - 0.9 * s) * np.log(p) - 0.9 * s * np.log((1 - p) / 9)) for s in (0, 0.1, 0.2)}
assert np.isclose(p[lines["s = 0.1"][1].argmin()], 0.91, atol=0.002)
alt = "Loss against probability: it falls up to one without smoothing, and rises again near one with it."
curves(lines, "probability of the true class", "loss", alt=alt, ylim=(0, 2.5))

# %% [markdown]
# ## A moving average of the weights
#
# At a large learning rate the weights jump around a good place. An **exponential moving average** (EMA) keeps a second
# set of weights, $a \leftarrow \beta\, a + (1 - \beta)\, w$ after each step, and only that set is evaluated. Here is a
# run on the images from above, at a constant learning rate, measured with both:


# %%
def accuracy(model):
    with no_grad():
        return (model(data.normalize(test_set.images[:500], mean, std)).data.argmax(1) == test_set.labels[:500]).mean()


model = nn.ViT(nn.ViTConfig(version="1.1", pre_norm=False), train_set.spec, np.random.default_rng(0))
optimizer, raw, averaged = optim.Muon(model.parameters(), lr=1e-2), [], []
ema, loader = optim.EMA(optimizer, 0.95), data.Loader(train_set, 50, shuffle=True, rng=rng)
by_hand = optimizer.flat.data.copy()  # all weights in one array
batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
for step in range(20 if FAST else 600):
    inputs, targets = next(batches)
    loss = ops.cross_entropy(model(data.normalize(inputs, mean, std)), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update()
    by_hand = 0.95 * by_hand + 0.05 * optimizer.flat.data
    if step % 20 == 19:
        raw.append(accuracy(model))
        with ema.weights():
            averaged.append(accuracy(model))
assert np.allclose(by_hand, ema.average, atol=1e-5)

# %%
steps = 20 * np.arange(1, len(raw) + 1)
alt = "Test accuracy goes up and down from one measurement to the next; that of the averaged weights less so."
curves({"weights": (steps, raw), "their average": (steps, averaged)}, "step", "test accuracy", alt=alt)
if not FAST:
    assert np.mean(averaged[-10:]) > np.mean(raw[-10:])

# %% [markdown]
# The average is calmer and better. Yet the bars above credit it with almost nothing: there a cosine schedule brings the
# learning rate down to zero, and then the weights come to rest by themselves. What an ingredient is worth depends on
# the others.
#
# ## Reading a log
#
# `minitl train` prints a line for each epoch and stores the numbers in `metrics.csv`. This is a run of the preset. (The
# stored runs used JPEG files of the photographs, so the official files may give slightly different numbers.)

# %%
command, run = load_curve("cifar-cpu")
print(command)
for epoch, train, test in zip(run["epoch"], run["train_accuracy"], run["test_accuracy"], strict=True):
    print(f"epoch {epoch:.0f}   train accuracy {train:.1%}   test accuracy {test:.1%}")
lines = {part: (run["epoch"], run[f"{part}_accuracy"]) for part in ("train", "test")}
assert np.argmax(np.array(run["train_accuracy"]) > run["test_accuracy"]) == 4
alt = "Training and test accuracy over six epochs, close to each other and both still rising; the lines cross."
curves(lines, "epoch", "accuracy", alt=alt, marks=True, ylim=(0.4, 0.9))

# %% [markdown]
# Training accuracy is counted during the epoch, with weights that are still getting better, and on augmented images.
# So it may lie *below* test accuracy; here it does until epoch 4. As long as both rise together, the model needs more
# training: more epochs or a better optimizer will help, and regularization will not. Now a tenth of the images, 20
# epochs, and patches instead of the stem:

# %%
names = {"no augmentation": "cifar-few-no-flip", "flips": "cifar-few", "flips and crops": "cifar-few-crop"}
runs = {name: load_curve(file)[1] for name, file in names.items()}
pairs = [(name, part) for name in runs for part in ("train", "test")]
lines = {f"{name}, {part}": (runs[name]["epoch"], runs[name][f"{part}_accuracy"]) for name, part in pairs}
alt = "Without augmentation training accuracy nears one and test accuracy stops near 0.4; with it the gap narrows."
curves(lines, "epoch", "accuracy", alt=alt, size=(7, 3), ylim=(0, 1.02), xticks=range(0, 21, 5))

# %%
for name, part in pairs:
    print(f"{name}, {part}: {runs[name][f'{part}_accuracy'][-1]:.1%}")
assert runs["no augmentation"]["train_accuracy"][-1] > 0.95
assert runs["flips and crops"]["test_accuracy"][-1] > runs["no augmentation"]["test_accuracy"][-1] + 0.05

# %% [markdown]
# Without augmentation the model learns its 5,000 images by heart, and test accuracy stops rising while training
# accuracy climbs: that is **overfitting**, and here augmentation pays. So read the two curves first, and then decide
# which ingredient to add.
#
# ## What learned tokens are worth here
#
# On CLUTTER a grid failed, and eight learned tokens were as good as all 64. On CIFAR-10, from the table above:

# %%
macs = {}
for name in ("all tokens", "cifar-cpu", "grid of 16"):
    macs[name] = flops.total(flops.count(ablate.KINDS["recipe"][name].model, nn.DataSpec())).macs
    print(f"{name:10}  accuracy {worth[name]:.1%}   {macs[name] / 1e6:.1f} million multiply-adds")
assert macs["all tokens"] > 1.7 * macs["cifar-cpu"] and worth["grid of 16"] > worth["cifar-cpu"]

# %% [markdown]
# **Sixteen learned tokens do not beat a plain grid of 4 × 4 cells at this budget**, and the grid is cheaper. A likely
# reason: most objects of CIFAR-10 are centered and fill the picture, so every cell has something to say. Lesson 00
# shows the opposite case. Before you use learned tokens, ask whether what decides is small and its place unknown.
#
# ## The same code on a GPU
#
# A Tensor lives where its array lives. An op asks for the library of its array, `xp = array_module(x)`, which is
# NumPy or CuPy, and the rest of its code is the same for both. Only the model and the images have to be moved.
#
# ```sh
# minitl train cifar10 --preset cifar-r1 --device cuda --minutes 6
# ```
#
# trains a larger ViT with ten blocks, strong augmentation and an EMA, for as many epochs as fit into six minutes. **We
# cannot say what it reaches: the CUDA code passes its tests on a stand-in for CuPy but has not run on a GPU yet.**
#
# Every call has a fixed price (on a GPU, that of starting a program), so one large product is better than many small
# ones. `ops.linear` therefore flattens its input $(B, N, d)$ to one matrix $(B N, d)$. Even NumPy shows the
# difference, here for the 16 tokens of 512 images:


# %%
def shortest(product):
    """The shortest of 20 times, in seconds"""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times)


tokens, W = (rng.standard_normal(shape).astype("float32") for shape in ((512, 16, 64), (64, 64)))
ratio = shortest(lambda: [image @ W for image in tokens]) / shortest(lambda: tokens.reshape(-1, 64) @ W)
print(f"512 products of (16, 64) with (64, 64) take {ratio:.1f} times as long as one of (8192, 64)")

device = "cpu" if cuda_problem() else "cuda"
logits = model.to(device)(Tensor(data.normalize(to_device(batch, device), mean, std)))
print(f"the model computes on {device} with {array_module(logits.data).__name__}")

# %% [markdown]
# ## Exercises
#
# **1. Average pooling without windows.** When windows do not overlap, a `reshape` is enough. Write the op
# `my_avg_pool(x)` for windows of 2 × 2, from $(B, H, W, C)$ to $(B, H/2, W/2, C)$, with its backward. Put `@op` on top.


# %%
def my_avg_pool(x): ...


check(my_avg_pool)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def my_avg_pool(x):
#     B, H, W, C = x.shape
#     y = x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
#     return y, lambda dy: dy.repeat(2, axis=1).repeat(2, axis=2) / 4
#
#
# check(my_avg_pool)
# ```
#
# </details>
#
# **2. Batch norm for free.** In evaluation, mean and variance are constants, and all that batch norm does is to scale
# and to shift. Write `fold(W, w, b, mean, var)` that returns $W'$ and $b'$ such that $x W' + b'$ is the batch norm of
# $x W$ for all $x$, with $\epsilon = 10^{-5}$. $W$ is $(C, K)$, the others $(K,)$.


# %%
def fold(W, w, b, mean, var): ...


check(fold)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def fold(W, w, b, mean, var):
#     scale = w / np.sqrt(var + 1e-5)
#     return W * scale, b - mean * scale
#
#
# check(fold)
# ```
#
# So batch norm costs nothing once training is over. LayerNorm cannot be folded: its mean and deviation depend on the
# input.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Derive the gradients of max pooling, average pooling and batch norm, and say which mistake each check finds.
# - Name the ingredients of a recipe, and decide from two curves which of them a run needs.
# - Say what learned tokens are worth on CIFAR-10.
# - Move a model to a GPU, and say why it wants few large products.
#
# **Next:** [What goes wrong](12_what_goes_wrong.ipynb) breaks all of this on purpose, and repairs it.
