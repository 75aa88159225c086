"""Wrong answers to A5, mistakes that students make: (name, the answer's cell, the points that it loses by test)."""

FUSE = """
def my_fuse(y, x, M, V):
    U, W = M.T @ y, 1 / (1 + np.exp(-(x @ V)))

    def backward(do):
        dU = W.swapaxes(1, 2) @ do
        dl = do @ U.swapaxes(1, 2) * W * (1 - W)
        dM = (y @ dU.swapaxes(1, 2)).sum(0)
        return M @ dU, do + dl @ V.T, dM, (x.swapaxes(1, 2) @ dl).sum(0)

    return x + W @ U, backward
"""
CLIP = """
def tubelets(clips, t, p):
    B, T, H, W, c = clips.shape
    cut = clips.reshape(B, T // t, t, H // p, p, W // p, p, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(B, T // t, H // p, W // p, t * p * p * c)


def clip_tokens(x, learn):
    B, T, H, W, C = x.shape
    tokens = learn(x.reshape(B * T, H, W, C))
    return tokens.reshape(B, T * tokens.shape[1], C)
"""
LOSS = """
def my_bce(x, t):
    e = np.exp(-np.abs(x))
    p = np.where(x >= 0, 1, e) / (1 + e)
    L = (np.maximum(x, 0) - t * x + np.log1p(e)).mean()
    return L, lambda dL: (p - t) * (dL / x.size)
"""
AS_IT_STANDS = """
def my_bce(x, t):
    p = 1 / (1 + np.exp(-x))
    L = -np.where(t == 1, np.log(p), np.log(1 - p)).mean()
    return L, lambda dL: (p - t) * (dL / x.size)
"""
PRECISION = """
def my_average_precision(scores, targets):
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):
        hit = targets[:, k] == 1
        if hit.any():
            taken = scores[:, k] >= scores[hit, k][:, None]
            ap[k] = ((taken & hit).sum(1) / taken.sum(1)).mean()
    return ap, ap[~np.isnan(ap)].mean()
"""
BY_SORTING = """
def my_average_precision(scores, targets):
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):
        hit = targets[np.argsort(-scores[:, k]), k] == 1
        if hit.any():
            precision = hit.cumsum() / np.arange(1, len(hit) + 1)
            ap[k] = precision[hit].mean()
    return ap, ap[~np.isnan(ap)].mean()
"""


def swap(source, old, new):
    """Return the source with a mistake in it; ValueError if it has no ``old``."""
    if old not in source:
        raise ValueError(f"no {old!r} in the answer")
    return source.replace(old, new)


def fuse(old, new):
    return {"a5-fuse": swap(FUSE, old, new)}


def clip(old, new):
    return {"a5-clip": swap(CLIP, old, new)}


def loss(old, new):
    return {"a5-loss": swap(LOSS, old, new)}


def ap(old, new, source=PRECISION):
    return {"a5-ap": swap(source, old, new)}


fuse_all = {"a5-fuse-1": 2, "a5-fuse-2": 1, "a5-fuse-3": 1}
fuse_some = {"a5-fuse-1": 2, "a5-fuse-2": 1}
fuse_large = {"a5-fuse-3": 1}
clip_cut, clip_learn, clip_hidden = {"a5-clip-1": 1, "a5-clip-3": 1}, {"a5-clip-2": 1, "a5-clip-3": 1}, {"a5-clip-3": 1}
loss_all, loss_hidden = {"a5-loss-1": 2, "a5-loss-2": 1}, {"a5-loss-2": 1}
ap_all = {"a5-ap-1": 1, "a5-ap-2": 1, "a5-ap-3": 1, "a5-ap-4": 1}

wrong = [
    ("M not transposed", fuse("M.T @ y", "M @ y"), fuse_some),
    ("residual alone in dx", fuse("do + dl @ V.T", "do"), fuse_some),
    ("residual left out of dx", fuse("do + dl @ V.T", "dl @ V.T"), fuse_all),
    ("slope of the sigmoid left out", fuse(" * W * (1 - W)", ""), {"a5-fuse-1": 2, "a5-fuse-2": 1, "a5-fuse-3": 1}),
    (
        "dM by the mean over the batch",
        fuse(".swapaxes(1, 2)).sum(0)", ".swapaxes(1, 2)).mean(0)"),
        {"a5-fuse-1": 2, "a5-fuse-2": 1},
    ),
    ("M transposed in dy", fuse("return M @ dU", "return M.T @ dU"), {"a5-fuse-1": 2, "a5-fuse-2": 1}),
    ("softmax over the tokens", fuse("1 / (1 + np.exp(-(x @ V)))", "ops.softmax(x @ V, axis=-1).data"), fuse_all),
    ("added to x in place", fuse("    return x + W @ U", "    x += W @ U\n    return x"), fuse_all),
    (
        "sigmoid with a positive exponent",
        fuse("1 / (1 + np.exp(-(x @ V)))", "np.exp(x @ V) / (1 + np.exp(x @ V))"),
        fuse_large,
    ),
    ("weights in float64", fuse("np.exp(-(x @ V))", "np.exp(-(x @ V).astype(float))"), fuse_large),
    ("reshape alone", clip(".transpose(0, 1, 3, 5, 2, 4, 6, 7)", ""), clip_cut),
    ("time last in a tubelet", clip("5, 2, 4, 6, 7)", "5, 4, 6, 2, 7)"), clip_cut),
    ("rows and columns of the grid exchanged", clip("1, 3, 5, 2, 4", "1, 5, 3, 2, 4"), clip_cut),
    ("channels before pixels", clip("2, 4, 6, 7)", "7, 2, 4, 6)"), clip_hidden),
    ("square clips alone", clip("W // p, t * p", "H // p, t * p"), clip_hidden),
    (
        "time and clips exchanged",
        clip("learn(x.reshape(B * T, H, W, C))", "learn(x.transpose(1, 0, 2, 3, 4).reshape(B * T, H, W, C))"),
        clip_learn,
    ),
    (
        "tokens before frames",
        clip(
            "tokens.reshape(B, T * tokens.shape[1], C)",
            "tokens.reshape(B, T, -1, C).transpose(0, 2, 1, 3).reshape(B, -1, C)",
        ),
        clip_learn,
    ),
    ("all frames as one image", clip("x.reshape(B * T, H, W, C)", "x.reshape(B, T * H, W, C)"), clip_learn),
    (
        "frame after frame by NumPy, without gradients",
        clip(
            "    tokens = learn(x.reshape(B * T, H, W, C))\n    return tokens.reshape(B, T * tokens.shape[1], C)",
            "    return np.concatenate([np.asarray(learn(x[:, i])) for i in range(T)], 1)",
        ),
        clip_hidden,
    ),
    ("as it stands", {"a5-loss": AS_IT_STANDS}, loss_hidden),
    ("sum in place of the mean", loss(".mean()", ".sum()"), loss_all),
    ("divided by B alone", loss("x.size", "len(x)"), loss_all),
    ("dL ignored", loss("dL / x.size", "1 / x.size"), loss_all),
    ("sign of dx", loss("(p - t)", "(t - p)"), loss_all),
    ("-t of uint8", loss("- t * x", "+ -t * x"), loss_all),
    ("targets in float64", loss("    e = ", "    t = t.astype(float)\n    e = "), loss_hidden),
    (
        "clipped probabilities",
        {"a5-loss": swap(AS_IT_STANDS, "(-x))", "(-x))\n    p = p.clip(1e-7, 1 - 1e-7)")},
        loss_hidden,
    ),
    ("ties in the order in which they come", {"a5-ap": BY_SORTING}, {"a5-ap-3": 1}),
    ("lowest score first", ap("-scores", "scores", BY_SORTING), ap_all),
    ("strictly higher scores", ap(">=", ">"), ap_all),
    ("mean over all ranks", ap("precision[hit]", "precision", BY_SORTING), ap_all),
    ("divided by all clips", ap(".mean()\n    return ap", ".sum() / len(hit)\n    return ap"), ap_all),
    (
        "scores ranked over all classes",
        ap("scores[:, k] >= ", "scores.max(1) >= "),
        {"a5-ap-2": 1, "a5-ap-3": 1, "a5-ap-4": 1},
    ),
    ("0 for a class without a hit", ap("np.nan)", "0.0)"), {"a5-ap-4": 1}),
    ("nan in the mean", ap("ap[~np.isnan(ap)].mean()", "ap.mean()"), {"a5-ap-4": 1}),
    (
        "mean weighted by the number of hits",
        ap("ap[~np.isnan(ap)].mean()", "np.nansum(ap * targets.sum(0)) / targets.sum()"),
        {"a5-ap-2": 1, "a5-ap-3": 1},
    ),
    ("AP in float32", ap("np.nan)", "np.nan, scores.dtype)"), {"a5-ap-4": 1}),
]
