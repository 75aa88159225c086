# %% [markdown]
# # 05 · A ViT small enough to train
#
# Lessons 03 and 04 built the parts: patches, linear layers, LayerNorm, GELU, attention. Here they become a Vision
# Transformer, and you write all that its training needs: a loss, an optimizer, a schedule. Then it learns to name
# shapes in about a minute on a CPU, and we look at where it looks and at what it costs.
#
# | | |
# |---|---|
# | **Goal** | assemble a ViT and train it, knowing each line of the training loop |
# | **Time** | 60 minutes to read, 60 seconds to run on two cores of an AMD EPYC |
# | **You need** | lessons [02](02_engine.ipynb), [03](03_patches.ipynb) and [04](04_attention.ipynb) |

# %%
import itertools

import numpy as np
from checks import check
from lesson import FAST, bars, curves, graph, images, matrices, show

from minitl import Tensor, check_gradients, data, flops, metrics, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.train import pictures

rng = np.random.default_rng(0)

# %% [markdown]
# ## The task, and two sets of images
#
# In each image of CLUTTER one object is red. Its shape is the *label*, stored as an integer from 0 to 7. The network
# learns from the training images only. A network with many weights can learn images by heart, and then its answers on
# them say nothing. So it is judged on test images that it never learned from. Even the mean and the deviation of the
# colors, by which the inputs are normalized, come from the training images.

# %%
train_set, test_set = data.clutter(2000, 300) if FAST else data.clutter(20_000, 500)
mean, std = data.channel_stats(train_set.images)
print("train", train_set.images.shape, "  test", test_set.images.shape, "  labels", train_set.labels[:8])
images(
    {"": train_set.images[:8]},
    titles=[f"{k}: {train_set.classes[k]}" for k in train_set.labels[:8]],
    alt="Eight noisy images of colored shapes with the number and the name of the red shape above each.",
)

# %% [markdown]
# ## The encoder block
#
# A block takes tokens $x$, $(B, N, C)$, and returns as many. It has two steps:
#
# $$u = x + \text{attention}(\text{norm}_1(x)) \qquad\qquad y = u + \text{MLP}(\text{norm}_2(u))$$
#
# - In the first, tokens exchange what they know.
# - In the second, each token is worked on alone. The MLP (multi-layer perceptron) is a linear layer to $M = 2C$
#   hidden numbers, GELU, and a linear layer back to $C$.
# - Each LayerNorm stands before its step and inside the branch (*pre-norm*), so nothing stands in the way from $x$ to
#   $y$ but two additions. These are called *residual connections*.

# %%
first = [("x", "norm 1"), ("norm 1", "attention"), ("attention", "+"), ("x", "+")]
second = [("+", "norm 2"), ("norm 2", "MLP"), ("MLP", "+ "), ("+", "+ "), ("+ ", "y")]
graph(
    first + second,
    size=(6.5, 1),
    alt="A graph from x to y: norm and attention on a branch that is added to x, then norm and MLP on a second branch.",
)


# %%
def encoder_block(x, w, heads):
    """(B, N, C) -> (B, N, C); w is a dict of the weights by name, as state_dict() returns it."""
    n = ops.layer_norm(x, w["norm1.weight"], w["norm1.bias"])
    qkv = ops.linear(n, w["attn.qkv.weight"], w["attn.qkv.bias"])  # (B, N, 3C)
    x = x + ops.linear(ops.attention(qkv, num_heads=heads), w["attn.proj.weight"], w["attn.proj.bias"])
    n = ops.layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    hidden = ops.gelu(ops.linear(n, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))  # (B, N, M)
    return x + ops.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


block = nn.EncoderBlock(dim=48, num_heads=3, mlp_dim=96, rng=rng)
x = Tensor(rng.standard_normal((2, 64, 48)).astype("float32"))
assert np.allclose(encoder_block(x, block.state_dict(), heads=3).data, block(x).data, atol=1e-5)

# %% [markdown]
# ### Why a residual?
#
# Attention is a weighted mean. A mean of means of means makes all tokens alike. The residual keeps what each token
# was and adds to it. We send tokens through twelve blocks with new, random weights, with and without the two
# additions, and measure after each how much the tokens of an image differ: the standard deviation over the tokens,
# divided by the root of the mean square of all numbers.


# %%
def differences(residual, depth=12):
    """How much tokens differ after 0, 1, … depth random blocks."""
    x, found = Tensor(rng.standard_normal((2, 64, 48)).astype("float32")), []
    for _ in range(depth + 1):
        found.append(x.data.std(axis=1).mean() / np.sqrt((x.data**2).mean()))
        block = nn.EncoderBlock(48, 3, 96, rng=rng)
        x = block(x) if residual else block.mlp(block.norm2(block.attn(block.norm1(x))))
    return found


kept, lost = differences(residual=True), differences(residual=False)
assert kept[-1] > 0.3 and lost[-1] < 1e-3

# %%
curves(
    {"with residuals": (np.arange(13), kept), "without": (np.arange(13), lost)},
    xlabel="blocks",
    ylabel="difference of the tokens",
    yscale="log",
    marks=True,
    alt="With residuals the difference stays near one; without them it falls to rounding errors within a few blocks.",
)

# %% [markdown]
# Without residuals the 64 tokens become one and the same vector, and the more alike they are, the faster: keys that
# are alike give even weights, and then every token gets the same mean. Backward, the addition helps as well: for
# $y = x + f(x)$ the gradient is $dx = dy$ plus what comes back through $f$. However many blocks there are, part of
# the gradient arrives at the first one unchanged.
#
# ## From tokens to an answer
#
# The whole network: patches, embedded and with positions added (lesson 03), two blocks, LayerNorm. Then the *head*:
# the mean over the tokens, $(B, N, C) \to (B, C)$, and a linear layer to one number for each class, the *logits*,
# $(B, 8)$. The class with the largest logit is the answer.


# %%
def embed(inputs, w):
    """Images (B, 32, 32, 3) -> tokens (B, 64, C); here C is 48, and so is the length 4 · 4 · 3 of a patch."""
    patches = inputs.reshape(-1, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 64, 48)
    return ops.linear(patches, w["patch_embed.weight"], w["patch_embed.bias"]) + w["pos_embed"]


def vit(inputs, w):
    """Images (B, 32, 32, 3) -> logits (B, 8)"""
    x = embed(inputs, w)
    for i in range(2):  # each block gets its own weights, without the prefix
        own = {name.removeprefix(f"blocks.{i}."): array for name, array in w.items()}  # "norm1.weight", …
        x = encoder_block(x, own, heads=3)
    x = ops.layer_norm(x, w["norm.weight"], w["norm.bias"])
    return ops.linear(x.mean(axis=1), w["head.weight"], w["head.bias"])


def new_model(**options):
    """minitl's ViT with all 64 tokens, not trained. A spec says how large images are and how many classes there are."""
    return nn.ViT(nn.ViTConfig(tokenizer="none", **options), train_set.spec, np.random.default_rng(0))


model = new_model(zero_head=False)  # a head of zeros would hide a mistake
some = data.normalize(test_set.images[:4], mean, std)
logits = vit(some, model.state_dict()).data
assert np.allclose(logits, model(some).data, atol=1e-5)
print(f"{model.num_parameters():,} parameters; logits {logits.shape}")

# %% [markdown]
# ## The loss: cross-entropy
#
# Softmax turns logits $x$, $(B, K)$, into probabilities $p_{bk} = e^{x_{bk}} / \sum_j e^{x_{bj}}$. Let $k_b$ be
# the label of image $b$. The loss is the mean of $-\ln$ of the probability given to the right class: 0 if that is 1,
# and large if it is near 0.
#
# $$L = -\frac{1}{B} \sum_b \ln p_{b,k_b} = \frac{1}{B} \sum_b \Big( \ln \sum_j e^{x_{bj}} - x_{b,k_b} \Big)$$
#
# The derivative of the bracket with respect to a logit $x_{bk}$ is a difference. The logarithm of the sum gives
# $e^{x_{bk}} / \sum_j e^{x_{bj}}$, which is $p_{bk}$. From it the derivative of $x_{b,k_b}$ is subtracted, which is 1
# where $k = k_b$, else 0. Call this $t_{bk}$; the row $t_b$ is the label written as *one-hot*. So
#
# $$dx_{bk} = \frac{p_{bk} - t_{bk}}{B}\, dL$$
#
# A step against the gradient moves the right logit up and all others down, each as strongly as its probability is
# wrong. As in lesson 04, the largest logit of each row is subtracted first, so that no exponential overflows.


# %%
@op
def softmax_loss(x, labels):
    """Mean of -ln p over the images:  x (B, K), labels (B,) integers"""
    B = len(labels)
    z = x - x.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))

    def backward(dL):
        t = labels[:, None] == np.arange(x.shape[1])  # one-hot, (B, K)
        return (np.exp(log_p) - t) * dL / B, None  # labels have no gradient

    return -log_p[np.arange(B), labels].mean(), backward


x, labels = rng.standard_normal((4, 8)), np.array([0, 3, 3, 7])
check_gradients(lambda x: softmax_loss(x, labels), x)
assert np.isclose(softmax_loss(1000 * x, labels).data, ops.cross_entropy(1000 * x, labels).data)  # minitl's

p = ops.softmax(x).data
one_hot = (labels[:, None] == np.arange(8)).astype(float)

# %%
matrices(
    {"$p$": p, "one-hot $t$": one_hot, "$p - t$": p - one_hot},
    xlabel="class",
    ylabel="image",
    text="{:.1f}",
    alt="Three matrices: probabilities, ones at the labels, and the difference, which is negative only at the labels.",
)

# %% [markdown]
# ## The optimizer: AdamW
#
# `backward` gives a gradient $g$ for each array of weights $w$. The plainest step is $w \leftarrow w - \eta\, g$, with
# a *learning rate* $\eta$. Its trouble: gradients of different weights can differ in size by orders of magnitude, so
# one $\eta$ is too large for some and too small for others. AdamW divides each gradient by its own usual size. It
# keeps two running means for each weight, of $g$ and of $g^2$, both starting at 0. At step $t$ = 1, 2, … (here $t$
# counts steps):
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2
# \qquad \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# $$w \leftarrow (1 - \eta \lambda)\, w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# - Means that start at 0 are too small at first: after one step $m = (1 - \beta_1)\, g$, and after $t$ steps the
#   weights of all gradients so far add up to $1 - \beta_1^t$. The divisors correct that (*bias correction*).
# - $\lambda$ is the *weight decay*: weights that no gradient needs shrink towards 0. It is *decoupled*: it acts on
#   $w$ itself and is not divided by $\sqrt{\hat v}$, as it would be if it were part of $g$.
# - In minitl only arrays with two or more axes decay. Biases and the scales of LayerNorm do not.


# %%
def adamw(w, g, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    """Update the array w, and its running means m and v, in place; step counts from 1."""
    m += (1 - beta1) * (g - m)  # beta1 m + (1 - beta1) g
    v += (1 - beta2) * (g**2 - v)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    if w.ndim >= 2:
        w *= 1 - lr * weight_decay
    w -= lr * m_hat / (np.sqrt(v_hat) + eps)


theirs = [nn.Parameter(rng.standard_normal(shape)) for shape in ((3, 2), (2,))]  # a matrix and a bias
ours = [(p.data.copy(), np.zeros(p.shape), np.zeros(p.shape)) for p in theirs]
optimizer = optim.AdamW(theirs, lr=0.1, weight_decay=0.5)
for step in range(1, 6):
    for p, (w, m, v) in zip(theirs, ours, strict=True):
        g = rng.standard_normal(p.shape)
        p.grad[...] = g
        adamw(w, g, m, v, step, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert all(np.allclose(p.data, w) for p, (w, _, _) in zip(theirs, ours, strict=True))

# %% [markdown]
# To see what the division is good for, minimize $\frac12 (w_1^2 + 0.001\, w_2^2)$ from $w = (1, 1)$. The second
# gradient, $0.001\, w_2$, is a thousand times smaller than the first, $w_1$. Plain steps get the rate that is best for
# $w_1$: with $\eta = 1$ it reaches 0 in one step, but each step takes only a thousandth off $w_2$. The first steps of
# AdamW are about $\eta$ long for both.

# %%
factors, plain, adam, paths = np.array([1, 0.001]), np.ones(2), np.ones(2), [(1, 1, 1)]
m, v = np.zeros(2), np.zeros(2)
for step in range(1, 201):
    plain -= 1.0 * factors * plain
    adamw(adam, factors * adam, m, v, step, lr=0.02)
    paths.append((*plain, adam[0]))
    assert np.allclose(adam[0], adam[1], atol=1e-3)  # one curve for both
assert plain[1] > 0.8 and abs(adam[1]) < 0.01

# %%
names = ["plain step, $w_1$", "plain step, $w_2$", "AdamW, $w_1$ and $w_2$"]
curves(
    {name: (np.arange(201), path) for name, path in zip(names, np.transpose(paths), strict=True)},
    xlabel="step",
    ylabel="weight",
    alt="By plain steps the first weight is zero at once and the second falls slowly; by AdamW both go to zero alike.",
)

# %% [markdown]
# ## Two guards: clipping and the schedule
#
# **Clipping.** A batch of unusual images can give a huge gradient. If the length of *all* gradients together,
# $\lVert g \rVert$, exceeds 1, every one of them is divided by $\lVert g \rVert$. The direction stays as it is.
#
# **Warm-up and cosine.** In the first steps the running means rest on few gradients and the weights are random, so the
# learning rate rises from near 0 during the first tenth of the steps. Then it falls along half a cosine, because at
# the end small steps are needed to settle. With $T$ steps, of which $R$ are warm-up, and the peak $\eta$:
#
# $$\eta_i = \eta\, \frac{i + 1}{R + 1} \;\text{ for } i < R, \qquad
# \eta_i = \frac{\eta}{2} \Big( 1 + \cos \frac{\pi (i - R)}{T - R} \Big) \;\text{ from then on}$$


# %%
def clip(grads, max_norm):
    """Scale arrays in place so that their common length is at most max_norm; return the length before."""
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    for g in grads:
        g *= min(1, max_norm / norm)
    return norm


def schedule(i, total, warmup, peak):
    if i < warmup:
        return peak * (i + 1) / (warmup + 1)
    return peak / 2 * (1 + np.cos(np.pi * (i - warmup) / (total - warmup)))


grads = [p.grad.copy() for p in theirs]
assert np.isclose(clip(grads, 1.0), optimizer.clip_grad_norm(1.0)) and np.allclose(grads[0], theirs[0].grad)
rates = [schedule(i, 480, 48, 6e-3) for i in range(480)]
assert np.allclose(rates, [optim.warmup_cosine(i, 480, 48, 6e-3) for i in range(480)])

# %%
curves(
    {"": (np.arange(480), rates)},
    xlabel="step",
    ylabel="learning rate",
    alt="The learning rate rises in a straight line for 48 steps and falls along half a cosine to zero at step 480.",
)

# %% [markdown]
# ## Training
#
# A step takes a *batch* of 100 images. An *epoch* is one pass over the training images, in a new order each time; 480
# steps are more than two epochs. In so short a run the running mean $v$ should not remember too long, so we take
# $\beta_2 = 0.99$. The loop has the five parts that every training loop has:
#
# 1. compute the loss of a batch;
# 2. `zero_grad`: set all gradients to 0, because `backward` *adds* to them (lesson 01), and those of the last step
#    are still there;
# 3. `backward`: compute the gradients;
# 4. clip them, and set the learning rate of this step;
# 5. `step`: move the weights.

# %%
STEPS = 12 if FAST else 480


def evaluate(model, inputs):
    """Logits (B, 8) of uint8 images, in ten parts, without recording a graph."""
    with no_grad():
        return np.concatenate([model(data.normalize(part, mean, std)).data for part in np.array_split(inputs, 10)])


def accuracy(model, dataset):
    return (evaluate(model, dataset.images).argmax(1) == dataset.labels).mean()


# %%
def train(model, stop=STEPS):
    """Train a model; return the loss of each step, and pairs (step, test accuracy) on the way."""
    optimizer = optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.05)
    loader = data.Loader(train_set, 100, shuffle=True, rng=np.random.default_rng(0))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    losses, tests = [], []
    for step in range(stop):
        inputs, labels = next(batches)
        loss = ops.cross_entropy(model(data.normalize(inputs, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, STEPS, STEPS // 10, 6e-3)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % (STEPS // 6) == 0:
            tests.append((step + 1, accuracy(model, test_set)))
            print(f"step {step + 1:3}   loss {losses[-1]:.3f}   gradient {norm:.2f}   test accuracy {tests[-1][1]:.1%}")
    return losses, tests


# %%
model = new_model()
losses, tests = train(model)
assert np.isclose(losses[0], np.log(8), atol=1e-3)
if not FAST:
    assert tests[-1][1] > 0.7  # chance is 0.125

# %%
width = max(STEPS // 30, 1)
smooth = np.convolve(losses, np.ones(width) / width, "valid")
curves(
    {"": (np.arange(len(smooth)) + width, smooth)},
    xlabel="step",
    ylabel=f"loss, mean of {width} steps",
    alt="The training loss starts at two, stays there briefly, falls steeply, and levels off.",
)

# %%
curves(
    {"": tuple(np.transpose([(0, 1 / 8), *tests]))},
    xlabel="step",
    ylabel="test accuracy",
    marks=True,
    ylim=(0, 1),
    alt="The test accuracy rises from chance, an eighth, steeply at first and then ever more slowly.",
)

# %% [markdown]
# The head of `new_model()` starts at zero, so at first all eight classes are equally likely and the loss is
# $\ln 8 \approx 2.08$. A first loss far from $\ln K$ is a sign of a mistake. The printed loss is that of one batch,
# and jumps. The gradient is printed before clipping, and is often longer than 1. Clipping it does little harm, since
# AdamW divides by the usual size.
#
# ## Three controls
#
# Whatever a network achieves, ask what else could explain it. Say what you expect of each before you read on.
#
# 1. **By heart?** Then it would be much better on the training images than on the test images.
# 2. **Is it attention?** We leave it out and keep the MLPs, so no token hears of any other before the final mean.
#    To save time this run stops after a third of the steps and is compared there.
# 3. **Does it need positions?** The trained network gets test images whose 64 patches have been shuffled.

# %%
no_attention = new_model()
for block in no_attention.blocks:
    block.forward = lambda x, block=block: x + block.mlp(block.norm2(x))  # block=block: each keeps its own
_, tests_without = train(no_attention, stop=STEPS // 3)

patches = test_set.images.reshape(-1, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 64, 4, 4, 3)
patches = patches[:, rng.permutation(64)].reshape(-1, 8, 8, 4, 4, 3)  # the same order for all images
shuffled = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)

right = {
    "test images": tests[-1][1],
    "training images": accuracy(model, train_set.take(np.arange(500))),
    "test images, shuffled": (evaluate(model, shuffled).argmax(1) == test_set.labels).mean(),
    f"attention, step {STEPS // 3}": tests[1][1],
    f"no attention, step {STEPS // 3}": tests_without[-1][1],
}
if not FAST:
    assert tests[1][1] > 0.3 and tests_without[-1][1] < 0.25
    assert right["test images, shuffled"] > right["test images"] - 0.1
    assert right["training images"] < right["test images"] + 0.12

# %%
bars(
    right,
    "accuracy",
    chance=1 / 8,
    alt="Accuracy is similar on test, training and shuffled images; at the earlier step, chance without attention.",
)

# %% [markdown]
# It is a few percent better on the training images, each of which it has seen two or three times. So it has begun to
# learn images by heart, but that does not explain what it can do on others. Without attention it learns almost
# nothing in this time. That shows that attention makes learning fast, not that it is necessary: with `STEPS = 1440`
# and `stop=STEPS` the network learns without it, too. Shuffled patches hardly matter. That agrees with lesson 03,
# which took the positions from a trained model: the pieces of edge inside the red patches name the shape, and how
# they lie to each other adds little. Do not conclude from a good result that a part you built in is what made it
# good.
#
# ## What does it confuse?
#
# Each row holds the images of one true shape, each column one answer. What is off the diagonal shows which shapes look
# alike to the network.

# %%
predicted = evaluate(model, test_set.images).argmax(1)
counts = metrics.confusion_counts(test_set.labels, predicted, 8)
assert np.isclose(np.trace(counts) / counts.sum(), tests[-1][1])
true, answer = np.unravel_index((counts - np.diag(counts.diagonal())).argmax(), counts.shape)
print(f"most frequent mistake: {test_set.classes[true]} → {test_set.classes[answer]}")

# %%
show(
    pictures.confusion(counts, test_set.classes),
    alt="A confusion matrix: rows are true shapes, columns answers; most of each row is on the diagonal.",
)

# %% [markdown]
# ## Where does it look?
#
# The network was never told where the object is. In the first block, token $n$ reads from token $m$ with the weight
# $A_{nm}$ (lesson 04). The mean over all $n$ and all heads is the attention that patch $m$ *receives*. These 64
# numbers add up to 1. The share that falls into the box around the object is a **map mass**, as in lesson 00. The
# control is the network before training.


# %%
def received(inputs, w, heads=3):
    """The attention that each patch receives in the first block: uint8 images -> (B, 8, 8)"""
    x = embed(data.normalize(inputs, mean, std), w)
    n = ops.layer_norm(x, w["blocks.0.norm1.weight"], w["blocks.0.norm1.bias"])
    qkv = ops.linear(n, w["blocks.0.attn.qkv.weight"], w["blocks.0.attn.qkv.bias"]).data
    q, k, _ = qkv.reshape(len(inputs), 64, 3, heads, -1).transpose(2, 0, 3, 1, 4)  # (B, heads, 64, 16) each
    A = ops.softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])).data  # (B, heads, 64, 64)
    return A.mean((1, 2)).reshape(-1, 8, 8)


before = received(test_set.images, new_model().state_dict())
after = received(test_set.images, model.state_dict())
mass = [metrics.map_mass(maps[:, None], test_set.boxes, (32, 32)).mean() for maps in (before, after)]
chance = metrics.box_share(test_set.boxes, (32, 32))
print(f"on the object: {mass[0]:.3f} before training, {mass[1]:.3f} after it, {chance:.3f} by chance")
assert FAST or mass[1] > 2 * chance

# %%
images(
    {"image": test_set.images[:8], "before": before[:8], "after": after[:8]},
    low=0,
    high=0.1,
    alt="Eight images and their received attention: dark and even before training, bright on the red object after it.",
)

# %% [markdown]
# Black is 0 and light yellow 0.1 or more. Of what the tokens read, the few patches on the object now give more than
# twice their share.
#
# ## What does it cost?
#
# We count multiply-adds as in lesson 00, for one image and the whole network. A product of $(N, C)$ and $(C, D)$
# takes $N C D$. A block has linear layers from $C$ to $3C$, to $C$, to $M$ and back to $C$, and in attention two
# products with $N^2 C$ each, $q k^\top$ and $A v$.

# %%
N, C, M = 64, 48, 96
cost = {  # a first factor of 2 stands for the two blocks
    "patch embedding": N * 48 * C,
    "linear layers of attention": 2 * N * (C * 3 * C + C * C),
    "products of attention": 2 * 2 * N * N * C,
    "MLP": 2 * N * 2 * C * M,
    "head": C * 8,
}
assert sum(cost.values()) == flops.total(flops.count(model.config, model.spec)).macs  # minitl's count

# %%
bars(
    {name: value / 1e6 for name, value in cost.items()},
    "million multiply-adds per image",
    text="{:.2f}",
    alt="Bars of multiply-adds: both kinds of linear layers cost most, products of attention less, the ends little.",
)
print(f"together {sum(cost.values()) / 1e6:.2f} million; the object covers {chance:.0%} of an image")

# %% [markdown]
# All but the head grow with $N$, and the products of attention with $N^2$. Yet each of the 64 patches gets the same
# work, and nearly all of them show background. TokenLearner, in the next lesson, starts from there.
#
# ## Exercises
#
# **1. Another loss.** The squared error of the probabilities, $L = \frac{1}{B} \sum_{bk} (p_{bk} - t_{bk})^2$, looks
# reasonable too. Write it as an op of logits $x$ and targets $t$, both $(B, K)$, with both gradients. Let $g$ be the
# gradient of $p$, and use softmax's backward of lesson 04.


# %%
@op
def squared_error(x, t):
    L = np.zeros(())  # your loss

    def backward(dL):
        return np.zeros_like(x), np.zeros_like(t)  # your dx and dt

    return L, backward


check(squared_error)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def squared_error(x, t):
#     e = np.exp(x - x.max(1, keepdims=True))
#     p = e / e.sum(1, keepdims=True)
#
#     def backward(dL):
#         g = 2 * (p - t) * dL / len(x)
#         return p * (g - (p * g).sum(1, keepdims=True)), -g
#
#     return ((p - t) ** 2).sum() / len(x), backward
#
#
# check(squared_error)
# ```
#
# The factor $p$ is its weakness. If the right class has a probability near 0 and a wrong one near 1, the answer could
# not be worse, and yet the gradient is almost 0. That of cross-entropy, $p - t$, is as large as it can be.
#
# </details>
#
# **2. The first step of AdamW.** With $\beta_1 = 0.9$ and $\beta_2 = 0.999$, how many times larger would the first
# step be without bias correction, with $m$ and $v$ in place of $\hat m$ and $\hat v$? Neglect $\epsilon$.
# Write it as an expression, not rounded.

# %%
times_larger = None  # your expression
check(times_larger=times_larger)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# g = 0.02  # any gradient
# m, v = (1 - 0.9) * g, (1 - 0.999) * g**2
# corrected = g / np.sqrt(g**2)  # 1: the first step has the size of the learning rate, whatever the gradient
# times_larger = m / np.sqrt(v) / corrected
# check(times_larger=times_larger)
# ```
#
# $0.1 / \sqrt{0.001}$. The correction, like warm-up, keeps first steps from being too large.
#
# </details>
#
# **3. Count the weights.** How many parameters does an encoder block with $C = 48$ and $M = 96$ have? All four
# linear layers have a bias.

# %%
parameters_of_block = None  # your number
check(parameters_of_block=parameters_of_block)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# attention = (C * 3 * C + 3 * C) + (C * C + C)
# mlp = (C * M + M) + (M * C + C)
# norms = 2 * 2 * C
# parameters_of_block = attention + mlp + norms
# check(parameters_of_block=parameters_of_block)
# ```
#
# Heads change nothing: they split the same $C$ numbers.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write a ViT: embedding, positions, blocks with two residuals each, mean, head.
# - Derive the gradient of cross-entropy, and write AdamW, clipping and the schedule.
# - Train it, read the log, and ask of a result what a control would say.
#
# **Next:** [TokenLearner, first version](06_tokenlearner.ipynb) replaces the 64 tokens by 8 that the image itself
# chooses.
