"""Wrong answers to A0, mistakes that students make: (name, the answers' cells, the points that they lose by test)."""

PATCH = """
def patchify(x, p, q):
    B, rows, columns, C = x.shape
    x = x.reshape(B, rows // p, p, columns // q, q, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, -1, p * q * C)


def unpatchify(patches, H, W, p, q):
    x = patches.reshape(len(patches), H, W, p, q, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(patches), H * p, W * q, -1)
"""
RESHAPE_ONLY = """
def patchify(x, p, q):
    return x.reshape(len(x), -1, p * q * x.shape[3])


def unpatchify(patches, H, W, p, q):
    return patches.reshape(len(patches), H * p, W * q, -1)
"""
FILLED = """
def patchify(x, p, q):
    B, rows, columns, C = x.shape
    H, W = rows // p, columns // q
    patches = np.zeros((B, H * W, p * q * C))
    for h in range(H):
        for w in range(W):
            patches[:, h * W + w] = x[:, h * p : h * p + p, w * q : w * q + q].reshape(B, -1)
    return patches


def unpatchify(patches, H, W, p, q):
    x = patches.reshape(len(patches), H, W, p, q, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(patches), H * p, W * q, -1)
"""
SOFTMAX = """
def my_softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
"""
IN_PLACE = """
def my_softmax(x, axis=-1):
    x -= x.max(axis, keepdims=True)
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)
"""
POOL = """
def weighted_mean(A, x):
    Z = np.einsum("bhws,bhwc->bsc", A, x)
    return Z / A.sum((1, 2))[:, :, None]
"""
SHAPES = """
def shapes(B, H, W, C, S):
    return {
        "a": (B, H * W, C), "b": (B, 1, 1, C), "c": "error", "d": (B, W, C),
        "e": (B, S, H, W, C), "f": (B, S, S), "g": "error", "h": (H, W),
    }
"""
patch, softmax = {"a0-patch-1": 2, "a0-patch-2": 1}, {"a0-softmax-1": 1, "a0-softmax-2": 1}
pool, shapes = {"a0-pool-1": 1, "a0-pool-2": 1}, {"a0-shapes-1": 1}
patch_hidden, softmax_hidden, pool_hidden = {"a0-patch-2": 1}, {"a0-softmax-2": 1}, {"a0-pool-2": 1}

wrong = [
    ("reshape alone", {"a0-patch": RESHAPE_ONLY}, patch),
    (
        "patches ordered by column of the grid",
        {
            "a0-patch": PATCH.replace(
                "transpose(0, 1, 3, 2, 4, 5)\n    return x.reshape(B",
                "transpose(0, 3, 1, 2, 4, 5)\n    return x.reshape(B",
            )
        },
        patch,
    ),
    (
        "H and W exchanged in the way back",
        {"a0-patch": PATCH.replace("H, W, p, q, -1)", "W, H, p, q, -1)")},
        patch_hidden,
    ),
    (
        "colors before pixels",
        {
            "a0-patch": PATCH.replace(
                "(0, 1, 3, 2, 4, 5)\n    return x.reshape(B", "(0, 1, 3, 5, 2, 4)\n    return x.reshape(B"
            )
        },
        patch_hidden,
    ),
    ("zeros of float64 filled by loops", {"a0-patch": FILLED}, patch_hidden),
    ("maximum not subtracted", {"a0-softmax": SOFTMAX.replace(" - x.max(axis, keepdims=True)", "")}, softmax_hidden),
    (
        "maximum of the whole array",
        {"a0-softmax": SOFTMAX.replace("x.max(axis, keepdims=True)", "x.max()")},
        softmax_hidden,
    ),
    ("minimum in place of maximum", {"a0-softmax": SOFTMAX.replace("x.max", "x.min")}, softmax_hidden),
    ("always the last axis", {"a0-softmax": SOFTMAX.replace("(axis,", "(-1,")}, softmax),
    ("sum over the whole array", {"a0-softmax": SOFTMAX.replace("e.sum(axis, keepdims=True)", "e.sum()")}, softmax),
    ("input changed in place", {"a0-softmax": IN_PLACE}, softmax_hidden),
    ("softmax in float64", {"a0-softmax": SOFTMAX.replace("np.exp(x -", "np.exp(x.astype(float) -")}, softmax_hidden),
    ("not divided by the sum of the weights", {"a0-pool": POOL.replace(" / A.sum((1, 2))[:, :, None]", "")}, pool),
    (
        "divided by the number of places",
        {"a0-pool": POOL.replace("A.sum((1, 2))[:, :, None]", "(A.shape[1] * A.shape[2])")},
        pool,
    ),
    ("sum of the weights without a new axis", {"a0-pool": POOL.replace("[:, :, None]", "")}, pool),
    (
        "weights summed over the maps",
        {"a0-pool": POOL.replace("A.sum((1, 2))[:, :, None]", "A.sum((1, 3))[:, :1, None]")},
        pool,
    ),
    ("summed over the images", {"a0-pool": POOL.replace("->bsc", "->sc").replace("Z /", "Z[None] /")}, pool_hidden),
    (
        "sums of all images divided by",
        {"a0-pool": POOL.replace("A.sum((1, 2))[:, :, None]", "A.sum((0, 1, 2))[:, None]")},
        pool_hidden,
    ),
    ("broadcasting from the left", {"a0-shapes": SHAPES.replace('"g": "error"', '"g": (B, S, C)')}, shapes),
    ("an axis of length 1 lost", {"a0-shapes": SHAPES.replace("(B, 1, 1, C)", "(B, C)")}, shapes),
]
