"""Wrong answers to A3, mistakes that students make: (name, the answer's cell, the points that it loses by test)."""

HEADS = """
def split_heads(qkv, h):
    B, N, width = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, h, width // (3 * h)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(y):
    B, h, N, d = y.shape
    return y.transpose(0, 2, 1, 3).reshape(B, N, h * d)
"""
ATTENTION = """
def my_attention(q, k, v):
    root = q.shape[-1] ** 0.5
    scores = q @ k.swapaxes(-1, -2) / root
    e = np.exp(scores - scores.max(-1, keepdims=True))
    A = e / e.sum(-1, keepdims=True)

    def backward(dy):
        dA, dv = dy @ v.swapaxes(-1, -2), A.swapaxes(-1, -2) @ dy
        dl = A * (dA - (A * dA).sum(-1, keepdims=True))
        return dl @ k / root, dl.swapaxes(-1, -2) @ q / root, dv

    return A @ v, backward
"""
BLOCK = """
def my_block(x, norm1, attn, norm2, mlp):
    n, back_norm1 = norm1(x)
    a, back_attn = attn(n)
    u = x + a
    n, back_norm2 = norm2(u)
    m, back_mlp = mlp(n)

    def backward(dy):
        du = dy + back_norm2(back_mlp(dy))
        return du + back_norm1(back_attn(du))

    return u + m, backward
"""
POST_NORM = """
def my_block(x, norm1, attn, norm2, mlp):
    a, back_attn = attn(x)
    u, back_norm1 = norm1(x + a)
    m, back_mlp = mlp(u)
    y, back_norm2 = norm2(u + m)

    def backward(dy):
        dy = back_norm2(dy)
        du = back_norm1(dy + back_mlp(dy))
        return du + back_attn(du)

    return y, backward
"""
VIT = """
def tiny_vit(images, w, blocks, p):
    B, H, W, c = images.shape
    cut = images.reshape(B, H // p, p, W // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    x = ops.linear(cut.reshape(B, -1, p * p * c), w["patch_embed.weight"], w["patch_embed.bias"]) + w["pos_embed"]
    for block in blocks:
        x = block(x)
    x = ops.layer_norm(x, w["norm.weight"], w["norm.bias"])
    return ops.linear(x.mean(axis=1), w["head.weight"], w["head.bias"])


def train_step(forward, optimizer, images, labels, lr):
    loss = ops.cross_entropy(forward(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.lr = lr
    optimizer.step()
    return loss.item()
"""
HEADS_LOST = {"a3-heads-1": 2, "a3-heads-2": 1}
ATTENTION_LOST = {"a3-attention-1": 3, "a3-attention-2": 2}
BLOCK_LOST = {"a3-block-1": 2, "a3-block-2": 2}
VIT_LOST = {"a3-vit-1": 1, "a3-vit-3": 1}
STEP_LOST = {"a3-vit-2": 1, "a3-vit-4": 1}


def changed(key, source, *edits):
    """Return the answer ``source`` with edits, pairs of old and new text, each of which must apply."""
    for old, new in edits:
        assert old in source, f"{key}: {old}"
        source = source.replace(old, new)
    return {key: source}


def heads(*edits):
    return changed("a3-heads", HEADS, *edits)


def attention(*edits):
    return changed("a3-attention", ATTENTION, *edits)


def block(*edits):
    return changed("a3-block", BLOCK, *edits)


def network(*edits):
    return changed("a3-vit", VIT, *edits)


wrong = [
    (
        "reshape without transpose",
        heads(("reshape(B, N, 3, h, width // (3 * h)).transpose(2, 0, 3, 1, 4)", "reshape(3, B, h, N, -1)")),
        HEADS_LOST,
    ),
    (
        "the parts inside the heads",
        heads(
            ("(B, N, 3, h, width // (3 * h)).transpose(2", "(B, N, h, 3, width // (3 * h)).transpose(3"),
            ("3, 1, 4", "2, 1, 4"),
        ),
        HEADS_LOST,
    ),
    ("merged without transposing back", heads(("y.transpose(0, 2, 1, 3)", "y")), HEADS_LOST),
    ("tokens before heads", heads(("transpose(2, 0, 3, 1, 4)", "transpose(2, 0, 1, 3, 4)")), HEADS_LOST),
    (
        "sets the shape of its argument",
        heads(("q, k, v = qkv.reshape(B, N, 3, h, width // (3 * h))", "qkv.shape = B, N, 3, h, -1; q, k, v = qkv")),
        {"a3-heads-2": 1},
    ),
    ("no maximum subtracted", attention(("scores - scores.max(-1, keepdims=True)", "scores")), {"a3-attention-2": 2}),
    (
        "the maximum of the whole array subtracted",
        attention(("scores.max(-1, keepdims=True)", "scores.max()")),
        {"a3-attention-2": 2},
    ),
    ("softmax over the queries", attention(("max(-1", "max(-2"), ("e.sum(-1", "e.sum(-2")), ATTENTION_LOST),
    ("not divided by the root of d", attention(("q.shape[-1] ** 0.5", "1.0")), ATTENTION_LOST),
    ("dk with dl not transposed", attention(("dl.swapaxes(-1, -2) @ q", "dl @ q")), ATTENTION_LOST),
    ("the root forgotten in backward", attention(("dl @ k / root", "dl @ k")), ATTENTION_LOST),
    (
        "only the diagonal of the Jacobian of softmax",
        attention(("A * (dA - (A * dA).sum(-1, keepdims=True))", "A * (1 - A) * dA")),
        ATTENTION_LOST,
    ),
    (
        "dA in place of dl",
        attention(("dl @ k", "dA @ k"), ("dl.swapaxes(-1, -2) @ q", "dA.swapaxes(-1, -2) @ q")),
        ATTENTION_LOST,
    ),
    ("float64", attention(("q.shape[-1] ** 0.5", "np.full(1, q.shape[-1]) ** 0.5")), {"a3-attention-2": 2}),
    (
        "overwrites A in backward",
        attention(
            (
                "dl = A * (dA - (A * dA).sum(-1, keepdims=True))",
                "dA -= (A * dA).sum(-1, keepdims=True); np.multiply(A, dA, out=A); dl = A",
            )
        ),
        {"a3-attention-2": 2},
    ),
    ("norm after the addition", {"a3-block": POST_NORM}, BLOCK_LOST),
    ("no residual around attention", block(("u = x + a", "u = a"), ("du + back_norm1", "back_norm1")), BLOCK_LOST),
    ("the second branch reads x", block(("norm2(u)", "norm2(x)")), BLOCK_LOST),
    ("the direct way forgotten in backward", block(("du = dy + back", "du = back")), BLOCK_LOST),
    ("dy in place of du", block(("back_attn(du)", "back_attn(dy)")), BLOCK_LOST),
    (
        "the parts backward in forward order",
        block(("back_norm1(back_attn(du))", "back_attn(back_norm1(du))")),
        BLOCK_LOST,
    ),
    ("writes into x", block(("u = x + a", "x += a; u = x")), {"a3-block-2": 2}),
    (
        "writes into dy",
        block(("du = dy + back_norm2(back_mlp(dy))", "dy += back_norm2(back_mlp(dy)); du = dy")),
        {"a3-block-2": 2},
    ),
    ("attention computed again in backward", block(("back_attn(du)", "attn(norm1(x)[0])[1](du)")), {"a3-block-2": 2}),
    ("patches without transpose", network((".transpose(0, 1, 3, 2, 4, 5)", "")), VIT_LOST),
    ("no positions", network((' + w["pos_embed"]', "")), VIT_LOST),
    ("mean over the channels", network(("x.mean(axis=1)", "x.mean(axis=0)")), VIT_LOST),
    ("no last norm", network(('    x = ops.layer_norm(x, w["norm.weight"], w["norm.bias"])\n', "")), VIT_LOST),
    ("square images assumed", network(("H // p, p, W // p", "H // p, p, H // p")), {"a3-vit-3": 1}),
    (
        "colors before pixels",
        network(("transpose(0, 1, 3, 2, 4, 5)", "transpose(0, 1, 3, 5, 2, 4)")),
        VIT_LOST,
    ),
    ("zero_grad forgotten", network(("    optimizer.zero_grad()\n", "")), STEP_LOST),
    (
        "zero_grad after backward",
        network(
            ("    optimizer.zero_grad()\n    loss.backward()\n", "    loss.backward()\n    optimizer.zero_grad()\n")
        ),
        STEP_LOST,
    ),
    ("no clipping", network(("    optimizer.clip_grad_norm(1.0)\n", "")), {"a3-vit-4": 1}),
    (
        "the rate set after the step",
        network(("    optimizer.lr = lr\n    optimizer.step()", "    optimizer.step()\n    optimizer.lr = lr")),
        STEP_LOST,
    ),
    ("the loss as a Tensor", network(("loss.item()", "loss")), STEP_LOST),
]
