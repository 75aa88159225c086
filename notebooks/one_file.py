"""TokenLearner in one file: data, gradients, model and training, in NumPy and nothing else.

An image shows one red object among green and blue ones. Which shape has the red one? To a vision
transformer the image is N = 64 patches. TokenLearner (Ryoo et al., NeurIPS 2021) makes S = 8 tokens
of them. It learns where in the image each should look, though nobody says where the red object is.
Run this file to train it, in about a minute. B is the number of images, C the width of a patch or
token, and dy the gradient of an array y: how fast the loss grows with each number in y.
"""

import numpy as np

N, S, C = 64, 8, 48  # patches, tokens, numbers in each
SIZES = np.array([7, 8, 9])  # pixels across an object; an image has 32 x 32
COOL = np.float32([[0.05, 0.2, 0.2], [0.5, 0.95, 0.95]])  # least and most red, green and blue
WARM = np.float32([0.95, 0.25, 0.2])  # of the red object, plus or minus 0.1

# 1. Data. An object has one of eight shapes, each a condition on the points (x, y) of a square from
# -1 to 1. COVER is the share of a pixel that meets it, for each shape and size, in 9 x 9 pixels.
COVER = np.zeros((8, 3, 9, 9), "float32")
for j, size in enumerate(SIZES):
    t = (np.arange(4 * size) + 0.5) / (2 * size) - 1  # 4 x 4 points in each pixel
    x, y = np.meshgrid(t, t)
    u, v, r = abs(x), abs(y), x**2 + y**2
    shapes = [r < 1, np.maximum(u, v) < 0.9, u < (y + 1) / 2]  # disc, square, triangle
    shapes += [np.minimum(u, v) < 0.3, (r < 1) & (r > 0.3)]  # plus, ring
    shapes += [np.minimum(abs(x + y), abs(x - y)) < 0.4, v < 0.35, u + v < 1]  # cross, bar, diamond
    COVER[:, j, :size, :size] = np.reshape(shapes, (8, size, 4, size, 4)).mean((2, 4))


def sample(rng, n):
    """Draw images (n, 32, 32, 3) in uint8, labels (n,), and boxes (n, 4) around the red objects."""
    canvas = (0.25 + 0.5 * rng.random((n, 4, 4, 3), "float32")).repeat(8, axis=1).repeat(8, axis=2)
    canvas += 0.12 * rng.standard_normal(canvas.shape, "float32")
    canvas = np.pad(canvas, ((0, 0), (0, 2), (0, 2), (0, 0)))  # so that 9 x 9 pixels always fit
    image, window = np.arange(n)[:, None, None], np.arange(9)
    for layer in range(7):  # six cool objects, then on top of them the red one, which we return
        shape, size = rng.integers(8, size=n), rng.integers(3, size=n)
        top, left = rng.integers(33 - SIZES[size]), rng.integers(33 - SIZES[size])
        shade = rng.random((n, 3), "float32")
        color = COOL[0] + (COOL[1] - COOL[0]) * shade if layer < 6 else WARM + 0.2 * shade - 0.1
        place = image, (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None]
        canvas[place] += COVER[shape, size][..., None] * (color[:, None, None] - canvas[place])
    images = np.rint(255 * canvas[:, :32, :32].clip(0, 1)).astype("uint8")
    return images, shape, np.stack([top, left, top + SIZES[size], left + SIZES[size]], axis=1)


# 2. Engine. A Tensor is an array `data` and its gradient `grad`. If an op made it, it also has its
# parents, the Tensors it was made from, and a pullback, which turns its gradient into theirs. So
# gradients go back, op by op, from the loss to the weights. A Tensor has a higher order than its
# parents. The highest goes first: nothing made from it is still to come, its gradient is complete.
class Tensor:
    def __init__(self, data, parents=(), pullback=lambda dy: ()):
        self.data, self.grad, self.parents, self.pullback = data, 0.0, parents, pullback
        self.order = 1 + max((parent.order for parent in parents), default=0)

    def backward(self):
        """Add to `grad` of each Tensor from which this one, the loss, was computed."""
        self.grad, pending = np.ones_like(self.data), {self}
        while pending:
            y = max(pending, key=lambda tensor: tensor.order)
            pending.remove(y)
            for x, dx in zip(y.parents, y.pullback(y.grad), strict=True):
                x.grad = x.grad + unbroadcast(dx, x.data.shape)  # every way to the loss counts
                pending.add(x)

    # 3. Ops. Each states its formula, and dx by the chain rule: dx_j = Σ_i dy_i ∂y_i/∂x_j.
    def __add__(a, b):
        """y = a + b,  da = db = dy"""
        return Tensor(a.data + b.data, (a, b), lambda dy: (dy, dy))

    def einsum(a, b, rule):
        """By "ik,kj->ij" y_ij = Σ_k a_ik b_kj,  da_ik = Σ_j dy_ij b_kj,  db_kj = Σ_i dy_ij a_ik"""
        ik, kj, ij = rule.replace("->", ",").split(",")

        def pullback(dy):
            da = np.einsum(f"{ij},{kj}->{ik}", dy, b.data, optimize=True)
            return da, np.einsum(f"{ij},{ik}->{kj}", dy, a.data, optimize=True)

        return Tensor(np.einsum(rule, a.data, b.data, optimize=True), (a, b), pullback)

    def gelu(self):
        """y = x (1 + t) / 2,  dx = (1 + t + x t') dy / 2,  t = tanh u,  t' = (1 - t²) u'"""
        x, c, k = self.data, (2 / np.pi) ** 0.5, 0.044715
        t = np.tanh(c * (x + k * x**3))  # u = c (x + k x³)
        slope = (1 + t + x * (1 - t**2) * c * (1 + 3 * k * x**2)) / 2
        return Tensor(x * (1 + t) / 2, (self,), lambda dy: [slope * dy])

    def softmax(self, scale=1.0):
        """y_i = exp(s x_i) / Σ_j exp(s x_j) along axis 1,  dx_i = s y_i (dy_i - Σ_j dy_j y_j)"""
        e = np.exp(scale * (self.data - self.data.max(1, keepdims=True)))  # at most 1: no overflow
        y = e / e.sum(1, keepdims=True)
        return Tensor(y, (self,), lambda dy: [scale * y * (dy - (dy * y).sum(1, keepdims=True))])

    def normalize(self):
        """y = (x - mean x) / std x on axis -1,  dx = (dy - mean dy - y mean(dy y)) / std x"""
        x, by = self.data, {"axis": -1, "keepdims": True}
        std = np.sqrt(x.var(**by) + 1e-6)
        y = (x - x.mean(**by)) / std
        return Tensor(y, (self,), lambda dy: [(dy - dy.mean(**by) - y * (dy * y).mean(**by)) / std])

    def cross_entropy(self, labels):
        """L = -mean ln p[label],  p = softmax(x),  dx = (p - t) dL / B,  t = 1 at the label"""
        z = self.data - self.data.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        B, t = len(z), np.eye(8, dtype=z.dtype)[labels]
        return Tensor(-(t * log_p).sum() / B, (self,), lambda dL: [(np.exp(log_p) - t) * dL / B])


def unbroadcast(grad, shape):
    """Sum `grad` over the axes along which NumPy repeated an array of this shape."""
    new = grad.ndim - len(shape)
    axes = [i for i in range(grad.ndim) if i < new or shape[i - new] < grad.shape[i]]
    return grad.sum(tuple(axes), keepdims=True).reshape(shape)


# 4. Model. A vision transformer with one attention head. The dict `p` has its weights, named as in
# minitl and made on first use. Axes are b image, n and m patch or token, s token, c and d channel.
class ViT:
    def __init__(self, rng):
        self.rng, self.p = rng, {}

    def weight(self, name, shape, center=0.0, limit=0.0):
        if name not in self.p:
            w = center + limit * self.rng.uniform(-1, 1, shape)
            self.p[name] = Tensor(w.astype("float32"))
        return self.p[name]

    def linear(self, name, x, n_out, scale=1.0):
        """(B, N, n_in) -> (B, N, n_out): y = x W + b"""
        n_in = x.data.shape[-1]
        limit = scale * (6 / (n_in + n_out)) ** 0.5  # so that y is about as large as x
        W = self.weight(f"{name}.weight", (n_in, n_out), limit=limit)
        return x.einsum(W, "bnc,cd->bnd") + self.weight(f"{name}.bias", n_out)

    def norm(self, name, x):
        y = x.normalize().einsum(self.weight(f"{name}.weight", C, center=1.0), "bnc,c->bnc")
        return y + self.weight(f"{name}.bias", C)

    def mlp(self, name, x, hidden, n_out, scale=1.0):
        y = self.linear(f"{name}.fc1", x, hidden).gelu()
        return self.linear(f"{name}.fc2", y, n_out, scale)

    def token_learner(self, x):
        """(B, N, C) -> tokens (B, S, C): means of the patches with weights (B, N, S), the maps."""
        maps = self.mlp("tokenizer.mlp", x, 64, S, scale=0.1).softmax()  # nearly even at first
        return maps.einsum(x, "bns,bnc->bsc"), maps

    def attention(self, name, x):
        """(B, S, C) -> (B, S, C): token n reads from token m with the weight A[b, m, n]."""
        q, k, v = (self.linear(f"{name}.{part}", x, C) for part in "qkv")
        A = q.einsum(k, "bnc,bmc->bmn").softmax(C**-0.5)
        return self.linear(f"{name}.proj", A.einsum(v, "bmn,bmc->bnc"), C)

    def __call__(self, images):
        """Images (B, 32, 32, 3) -> logits (B, 8) and maps (B, N, S)"""
        x = ((images - np.float32(127.5)) / 64).reshape(-1, 8, 4, 8, 4, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, N, 48)  # 8 x 8 patches of 4 x 4 x 3 numbers
        x = self.linear("patch_embed", Tensor(x), C) + self.weight("pos_embed", (N, C), limit=0.03)
        x, maps = self.token_learner(x)  # from 64 patches to 8 tokens
        for block in ("blocks.0", "blocks.1"):
            x = x + self.attention(f"{block}.attn", self.norm(f"{block}.norm1", x))  # among tokens
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.norm2", x), 96, C)  # in each
        logits = self.linear("head", self.norm("norm", x), 8, scale=0.0)
        return logits.einsum(Tensor(np.full(S, 1 / S, "float32")), "bsk,s->bk"), maps  # their mean


# 5. Training. AdamW divides a mean m of past gradients by the root of a mean v of their squares, so
# a weight moves by about lr a step. Both means start at 0; dividing by 1 - 0.9**t corrects that.
def adamw(weights, t, lr, decay=0.05):
    for w in weights:
        w.m = 0.9 * getattr(w, "m", 0) + 0.1 * w.grad
        w.v = 0.999 * getattr(w, "v", 0) + 0.001 * w.grad**2
        step = (w.m / (1 - 0.9**t)) / (np.sqrt(w.v / (1 - 0.999**t)) + 1e-8)
        w.data -= lr * (step + decay * (w.data.ndim > 1) * w.data)  # matrices shrink, too
        w.grad = 0.0


def main(steps=1200, tests=1000):
    model = ViT(np.random.default_rng(0))
    for t in range(1, steps + 1):
        images, labels, _ = sample(model.rng, 100)  # always new ones
        logits, _ = model(images)
        loss = logits.cross_entropy(labels)
        loss.backward()
        lr = 4e-3 * min(10 * t / steps, (1 + np.cos(np.pi * t / steps)) / 2)  # rise, then fall
        adamw(model.p.values(), t, lr)
        if t % (steps // 10) == 0:
            right = (logits.data.argmax(1) == labels).mean()
            print(f"step {t:4}   loss {loss.data:.3f}   accuracy {right:.0%}")
    images, labels, boxes = sample(np.random.default_rng(2), tests)
    logits, maps = model(images)
    print(f"test accuracy {(logits.data.argmax(1) == labels).mean():.1%}")
    (top, left, bottom, right), i = boxes.T[:, :, None], np.arange(32)
    inside = ((top <= i) & (i < bottom))[:, :, None] & ((left <= i) & (i < right))[:, None]
    share = inside.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, N, 1)  # of each patch
    print(f"map mass {(maps.data * share).sum(1).mean():.2f} (even maps: {share.mean():.2f})")


if __name__ == "__main__":
    main()
