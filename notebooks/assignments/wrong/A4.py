"""Wrong answers to A4, mistakes that students make: (name, the answer's cell, the points that it loses by test)."""

V10 = """
def maps_v10(x, kernels):
    for kernel in kernels[:-1]:
        x = ops.gelu(ops.conv2d(x, kernel, padding=1))
    logits = ops.conv2d(x, kernels[-1], padding=1)
    return ops.sigmoid(logits).transpose(0, 3, 1, 2)


def tokens_v10(A, x):
    (B, S, H, W), C = A.shape, x.shape[3]
    return A.reshape(B, S, H * W) @ x.reshape(B, H * W, C) / (H * W)
"""
V11 = """
def maps_v11(x, W1, b1, W2, b2):
    B, H, W, _ = x.shape
    logits = ops.linear(ops.gelu(ops.linear(x, W1, b1)), W2, b2)  # (B, H, W, S)
    rows = logits.reshape(B, H * W, -1).transpose(0, 2, 1)  # (B, S, H·W)
    return ops.softmax(rows, axis=-1).reshape(B, -1, H, W)
"""
POOL = """
def sigmoid_pool(logits, x):
    A, N = 1 / (1 + np.exp(-logits)), x.shape[1]

    def backward(dZ):
        dA, dx = dZ @ x.swapaxes(1, 2) / N, A.swapaxes(1, 2) @ dZ / N
        return dA * A * (1 - A), dx

    return A @ x / N, backward


def softmax_pool(logits, x):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    A = e / e.sum(-1, keepdims=True)

    def backward(dZ):
        dA, dx = dZ @ x.swapaxes(1, 2), A.swapaxes(1, 2) @ dZ
        return A * (dA - (A * dA).sum(-1, keepdims=True)), dx

    return A @ x, backward
"""
COST = """
def learner_cost(H, W, C, S, version, M=64):
    N = H * W
    maps = 9 * N * (C * S + 3 * S * S) if version == "1.0" else N * (C * M + M * S)
    return maps + S * N * C


def network_cost(N, C, D, S, layers, loc, learner):
    def one_block(n):
        return n * (4 * C * C + 2 * C * D) + 2 * n * n * C

    return loc * one_block(N) + learner + (layers - loc) * one_block(S)
"""
PLACE = """
def with_few_tokens(x, blocks, tokenizer, grid, loc):
    for block in blocks[:loc]:
        x = block(x)
    x = tokenizer(x.reshape(x.shape[0], *grid, x.shape[2]))
    for block in blocks[loc:]:
        x = block(x)
    return x


def score(A, boxes, p):
    found = np.zeros(A.shape[:2])
    for b, (top, left, bottom, right) in enumerate(boxes):
        spread = A[b].repeat(p, axis=1).repeat(p, axis=2)
        total = spread.sum((1, 2))
        found[b] = spread[:, top:bottom, left:right].sum((1, 2)) / np.where(total == 0, 1, total)
    return found
"""
SETTINGS = """
def settings():
    return {"version": "1.1", "pre_norm": False, "pool": "mean", "loc": 0, "lr": 0.01}
"""
V10_LOST = {"a4-v10-1": 2, "a4-v10-2": 2}
V11_LOST = {"a4-v11-1": 2, "a4-v11-2": 1}
POOL_LOST = {"a4-pool-1": 2, "a4-pool-2": 2}
COST_LOST = {"a4-cost-1": 1, "a4-cost-2": 1}
PLACE_LOST = {"a4-place-1": 2, "a4-place-2": 1}


def changed(key, source, edits):
    """Return the answer ``source`` with edits, pairs of old and new text, each of which must apply."""
    for old, new in edits:
        assert old in source, f"{key}: {old}"
        source = source.replace(old, new)
    return {key: source}


def v10(*edits):
    return changed("a4-v10", V10, edits)


def v11(*edits):
    return changed("a4-v11", V11, edits)


def pool(*edits):
    return changed("a4-pool", POOL, edits)


def cost(*edits):
    return changed("a4-cost", COST, edits)


def place(*edits):
    return changed("a4-place", PLACE, edits)


wrong = [
    ("no GELU", v10(("ops.gelu(ops.conv2d(x, kernel, padding=1))", "ops.conv2d(x, kernel, padding=1)")), V10_LOST),
    ("GELU after the last convolution", v10(("ops.sigmoid(logits)", "ops.sigmoid(ops.gelu(logits))")), V10_LOST),
    ("softmax for the sigmoid", v10(("ops.sigmoid(logits)", "ops.softmax(logits, axis=-1)")), V10_LOST),
    (
        "maps by reshape without transpose",
        v10(
            ("ops.sigmoid(logits).transpose(0, 3, 1, 2)", "ops.sigmoid(logits).reshape(len(x.data), -1, *x.shape[1:3])")
        ),
        V10_LOST,
    ),
    ("sum for the mean", v10((" / (H * W)", "")), V10_LOST),
    ("divided by the weights", v10((" / (H * W)", " / A.reshape(B, S, H * W).sum(axis=2, keepdims=True)")), V10_LOST),
    ("square grids assumed in the mean", v10(("/ (H * W)", "/ (H * H)")), {"a4-v10-2": 2}),
    ("no gradient to the maps", v10(("ops.sigmoid(logits)", "ops.sigmoid(logits.data)")), {"a4-v10-2": 2}),
    ("softmax over the maps", v11(("rows, axis=-1", "rows, axis=1")), V11_LOST),
    (
        "softmax over the columns of a row",
        v11(("ops.softmax(rows, axis=-1).reshape(B, -1, H, W)", "ops.softmax(rows.reshape(B, -1, H, W), axis=-1)")),
        V11_LOST,
    ),
    ("a sigmoid", v11(("ops.softmax(rows, axis=-1)", "ops.sigmoid(rows)")), V11_LOST),
    ("no GELU in the MLP", v11(("ops.gelu(ops.linear(x, W1, b1))", "ops.linear(x, W1, b1)")), V11_LOST),
    (
        "reshape for transpose",
        v11(("logits.reshape(B, H * W, -1).transpose(0, 2, 1)", "logits.reshape(B, -1, H * W)")),
        V11_LOST,
    ),
    (
        "exponentials without subtracting the maximum",
        v11(("ops.softmax(rows, axis=-1)", "(ops.exp(rows) / ops.exp(rows).sum(axis=2, keepdims=True))")),
        {"a4-v11-2": 1},
    ),
    ("square grids assumed in the maps", v11(("reshape(B, -1, H, W)", "reshape(B, -1, W, H)")), {"a4-v11-2": 1}),
    ("half of the slope of the sigmoid", pool(("dA * A * (1 - A)", "dA * A")), POOL_LOST),
    ("1 / N forgotten in backward", pool(("dZ @ x.swapaxes(1, 2) / N", "dZ @ x.swapaxes(1, 2)")), POOL_LOST),
    (
        "the sum in softmax's backward forgotten",
        pool(("A * (dA - (A * dA).sum(-1, keepdims=True))", "A * (1 - A) * dA")),
        POOL_LOST,
    ),
    ("the sum over the maps", pool(("(A * dA).sum(-1", "(A * dA).sum(1")), POOL_LOST),
    ("softmax over the maps in the pooling", pool(("max(-1", "max(1"), ("e.sum(-1", "e.sum(1")), POOL_LOST),
    ("no maximum subtracted", pool(("logits - logits.max(-1, keepdims=True)", "logits")), {"a4-pool-2": 2}),
    (
        "the maximum of the whole array subtracted",
        pool(("logits.max(-1, keepdims=True)", "logits.max()")),
        {"a4-pool-2": 2},
    ),
    (
        "float64",
        pool(("N = 1 / (1 + np.exp(-logits)), x.shape[1]", "N = 1 / (1 + np.exp(-logits)), np.full(1, x.shape[1])")),
        {"a4-pool-2": 2},
    ),
    (
        "writes into dZ",
        pool(
            (
                "        dA, dx = dZ @ x.swapaxes(1, 2) / N, A.swapaxes(1, 2) @ dZ / N",
                "        dZ /= N\n        dA, dx = dZ @ x.swapaxes(1, 2), A.swapaxes(1, 2) @ dZ",
            )
        ),
        POOL_LOST,
    ),
    ("the pooling not counted", cost((" + S * N * C", "")), COST_LOST),
    ("all convolutions from C to S", cost(("C * S + 3 * S * S", "4 * C * S")), COST_LOST),
    ("one product in attention", cost(("2 * n * n * C", "n * n * C")), COST_LOST),
    ("square grids assumed in the cost", cost(("N = H * W", "N = H * H")), {"a4-cost-2": 1}),
    ("loc ignored", cost(("loc * one_block(N) + learner + (layers - loc)", "learner + layers")), {"a4-cost-2": 1}),
    ("M is always 64", cost(("C * M + M * S", "C * 64 + 64 * S")), {"a4-cost-2": 1}),
    ("the tokenizer one block late", place(("[:loc]", "[: loc + 1]"), ("[loc:]", "[loc + 1 :]")), PLACE_LOST),
    ("the first blocks run again", place(("blocks[loc:]", "blocks")), PLACE_LOST),
    (
        "columns before rows",
        place(("*grid, x.shape[2])", "*grid[::-1], x.shape[2])")),
        {"a4-place-2": 1},
    ),
    ("the box includes its end", place(("top:bottom, left:right", "top : bottom + 1, left : right + 1")), PLACE_LOST),
    ("rows and columns of the box exchanged", place(("top:bottom, left:right", "left:right, top:bottom")), PLACE_LOST),
    (
        "whole places in the box",
        place(
            ("spread = A[b].repeat(p, axis=1).repeat(p, axis=2)", "spread = A[b]"),
            ("top:bottom, left:right", "top // p : -(-bottom // p), left // p : -(-right // p)"),
        ),
        PLACE_LOST,
    ),
    ("a map of zeros divides by zero", place(("np.where(total == 0, 1, total)", "total")), {"a4-place-2": 1}),
    ("hardly any learning rate", {"a4-train": SETTINGS.replace("0.01", "1e-4")}, {"a4-train-2": 1}),
    (
        "all 64 tokens in half of the blocks",
        {"a4-train": SETTINGS.replace('"loc": 0', '"loc": 1')},
        {"a4-train-1": 1, "a4-train-2": 1},
    ),
]
