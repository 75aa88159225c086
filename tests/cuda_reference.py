"""The kernels of ``minitl/fast/cuda/*.cu`` in NumPy, each with the name and the arguments of the kernel.

The first arrays are written to. Tests compare the kernels with these functions, and these with the plain ops.
"""

import ctypes
import math

import numpy as np

from minitl.data import transforms


def from_bf16(x):
    """Return ``x``, or its numbers in float32 if it holds bfloat16 as uint16."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def store(y, x):
    """Write ``x`` to ``y``, rounded if ``y`` holds bfloat16."""
    if y.dtype != np.uint16:
        y[...] = x.reshape(y.shape)
        return
    x = np.ascontiguousarray(x, np.float32).reshape(y.shape)
    bits = x.view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    y[...] = np.where(np.isnan(x), bits | 0x400000, rounded) >> 16


def layer_norm(y, mean, inv_std, x, weight, bias, rows, eps, *, COLUMNS):
    mean[...] = x.reshape(rows, COLUMNS).mean(1)
    n = x.reshape(rows, COLUMNS) - mean.reshape(rows, 1)
    inv_std[...] = 1 / np.sqrt((n * n).mean(1) + eps)
    store(y, n * inv_std.reshape(rows, 1) * weight + bias)


def layer_norm_dx(dx, dx_bf16, sums, parts, tickets, dy, x, accumulated, weight, mean, inv_std, rows, *, COLUMNS):
    inv, dy = inv_std.reshape(rows, 1), from_bf16(dy).reshape(rows, COLUMNS)
    n, g = (x.reshape(rows, COLUMNS) - mean.reshape(rows, 1)) * inv, dy * weight
    found = inv * (g - g.mean(1, keepdims=True) - n * (g * n).mean(1, keepdims=True))
    found += 0 if accumulated is None else accumulated.reshape(rows, COLUMNS)
    dx.reshape(rows, COLUMNS)[...] = found
    if dx_bf16 is not None:
        store(dx_bf16, found)
    sums[...] = np.concatenate([(dy * n).sum(0), dy.sum(0), found.sum(0)])


def column_sums(sums, parts, tickets, x, mean, rows, C, chunk):
    x = from_bf16(x).reshape(rows, C)
    x = x if mean is None else (x - mean) ** 2
    parts = np.empty((1, C), x.dtype) if parts is None else parts
    for k in range(len(parts)):
        parts[k] = x[k * chunk : (k + 1) * chunk].sum(0)
    sums[...] = parts.sum(0)


def norm_columns(sums, parts, tickets, dy, x, mean, inv_std, rows, C, chunk):
    dy, n = dy.reshape(rows, C), (x.reshape(rows, C) - mean) * inv_std
    column_sums(sums, parts, tickets, np.concatenate([dy * n, dy], 1), None, rows, 2 * C, chunk)


def batch_statistics(inv_std, running_mean, running_var, mean, v, rows, C, momentum, eps):
    inv_std[...] = 1 / np.sqrt(v / rows + eps)
    running_mean[...] = (1 - momentum) * running_mean + momentum * mean
    running_var[...] = (1 - momentum) * running_var + momentum * v / (rows - 1)


def batch_norm(y, x, mean, inv_std, weight, bias, rows, C):
    y.reshape(rows, C)[...] = (x.reshape(rows, C) - mean) * inv_std * weight + bias


def batch_norm_dx(dx, dy, x, mean, inv_std, weight, sums, rows, C):
    n = (x.reshape(rows, C) - mean) * inv_std
    dx.reshape(rows, C)[...] = (dy.reshape(rows, C) - (sums[C:] + n * sums[:C]) / rows) * weight * inv_std


def softmax(y, x, rows, n):
    x = x.reshape(rows, n)
    e = np.exp(x - x.max(1, keepdims=True))
    y.reshape(rows, n)[...] = e / e.sum(1, keepdims=True)


def softmax_dx(dx, dy, y, rows, n):
    dy, y = dy.reshape(rows, n), y.reshape(rows, n)
    dx.reshape(rows, n)[...] = y * (dy - (dy * y).sum(1, keepdims=True))


def relu(y, x, n):
    store(y, np.maximum(from_bf16(x), 0))


def relu_dx(dx, dy, y, n):
    store(dx, np.where(from_bf16(y) > 0, from_bf16(dy), 0))


def _gelu(x, exact):
    """Return Φ(x) and its derivative."""
    if exact:
        erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2))).astype(x.dtype)
        return (1 + erf) / 2, np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    c, k = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    return (1 + t) / 2, (1 - t * t) * c * (1 + 3 * k * x * x) / 2


def gelu(y, x, n, exact):
    x = from_bf16(x)
    store(y, x * _gelu(x, exact)[0])


def gelu_dx(dx, dy, x, n, exact):
    x = from_bf16(x)
    value, slope = _gelu(x, exact)
    store(dx, (value + x * slope) * from_bf16(dy))


def bias_gelu(y, x, b, rows, C):
    u = from_bf16(x).reshape(rows, C) + b
    store(y, u * _gelu(u, False)[0])


def bias_gelu_dx(db, parts, tickets, dx, dy, x, b, rows, C, chunk):
    u = from_bf16(x).reshape(rows, C) + b
    value, slope = _gelu(u, False)
    du = (value + u * slope) * from_bf16(dy).reshape(rows, C)
    store(dx, du)
    column_sums(db, parts, tickets, du, None, rows, C, chunk)


def _channels(N, C, *arrays):
    return [x.reshape(-1, N, C) for x in arrays]


def vector_attention(y, lse, q, k, v, n, N, C):
    y, lse, q, k, v = _channels(N, C, y, lse, q, k, v)
    scores = q[:, :, None] * k[:, None]  # (B, i, j, C)
    top = scores.max(2)
    lse[...] = top + np.log(np.exp(scores - top[:, :, None]).sum(2))
    y[...] = (np.exp(scores - lse[:, :, None]) * v[:, None]).sum(2)


def vector_attention_dx(dq, dk, dv, dy, q, k, v, y, lse, n, N, C):
    dq, dk, dv, dy, q, k, v, y, lse = _channels(N, C, dq, dk, dv, dy, q, k, v, y, lse)
    a = np.exp(q[:, :, None] * k[:, None] - lse[:, :, None])  # (B, i, j, C)
    de = a * dy[:, :, None] * (v[:, None] - y[:, :, None])
    dq[...], dk[...] = (de * k[:, None]).sum(2), (de * q[:, :, None]).sum(1)
    dv[...] = (a * dy[:, :, None]).sum(1)


def _attention(qkv, b, key, p, scale, N, d, heads):
    """Return q, k and v, (B, heads, N, d), A, and the mask for it."""
    qkv = from_bf16(qkv).reshape(-1, N, 3 * heads * d) + (0 if b is None else b)
    q, k, v = qkv.reshape(-1, N, 3, heads, d).transpose(2, 0, 3, 1, 4)
    A = q @ k.swapaxes(2, 3) * np.asarray(1 / math.sqrt(d), q.dtype)
    softmax(A, A, A.size // N, N)
    m = np.ones_like(A)
    if key is not None:
        dropout(m, None, key, p, scale, m.size)
    return q, k, v, A, m


def attention(y, qkv, b, key, p, scale, *, TOKENS, HEAD, HEADS, TF32=0):
    _, _, v, A, m = _attention(qkv, b, key, p, scale, TOKENS, HEAD, HEADS)
    store(y, ((m * A) @ v).swapaxes(1, 2))


def attention_dx(dqkv, sums, dy, qkv, b, key, p, scale, *, TOKENS, HEAD, HEADS, TF32=0):
    q, k, v, A, m = _attention(qkv, b, key, p, scale, TOKENS, HEAD, HEADS)
    dy = from_bf16(dy).reshape(-1, TOKENS, HEADS, HEAD).swapaxes(1, 2)
    dA = m * (dy @ v.swapaxes(2, 3))
    dS = A * (dA - (dA * A).sum(-1, keepdims=True)) * np.asarray(1 / math.sqrt(HEAD), A.dtype)
    grads = np.stack([dS @ k, dS.swapaxes(2, 3) @ q, (m * A).swapaxes(2, 3) @ dy])  # (3, B, heads, N, d)
    store(dqkv, grads.transpose(1, 3, 0, 2, 4))
    if sums is not None:
        sums[...] = grads.sum(3).swapaxes(0, 1).reshape(sums.shape)


def bias_drop_path(y, x, b, m, n, C, group):
    value = from_bf16(x).reshape(-1, C) + (0 if b is None else b)
    store(y, value.reshape(-1, group) * (1 if m is None else m.reshape(-1, 1)))


def dropout(y, x, key, p, scale, n):
    uniform = np.random.Generator(np.random.Philox(key=int(key[0]))).random(n, "float32")
    keep = np.where(uniform < np.float32(p), 0, scale).astype("float64" if y.dtype == "float64" else "float32")
    store(y, keep if x is None else keep * from_bf16(x).reshape(-1))


def _targets(labels, soft, K, keep, spread):
    return keep * (soft if labels is None else labels[:, None] == np.arange(K)) + spread


def cross_entropy(loss, parts, tickets, lse, x, labels, soft, B, K, keep, spread):
    top = x.max(1)
    lse[...] = top + np.log(np.exp(x - top[:, None]).sum(1))
    t = _targets(labels, soft, K, keep, spread)
    with np.errstate(invalid="ignore"):
        parts[...] = np.where(t == 0, 0, t * (lse[:, None] - x)).sum(1) / B
    if labels is not None:
        parts[(labels < 0) | (labels >= K)] = np.nan
    loss[...] = parts.sum()


def cross_entropy_dx(dx, dsoft, dloss, x, lse, labels, soft, B, K, keep, spread):
    t, share = _targets(labels, soft, K, keep, spread), dloss.reshape(()) / B
    dx[...] = (np.exp(x - lse[:, None]) * t.sum(1, keepdims=True) - t) * share
    if dsoft is not None:
        dsoft[...] = keep * (lse[:, None] - x) * share


def squares(sum, parts, tickets, x, n):
    runs = np.zeros(-(-n // 256) * 256, x.dtype)
    runs[:n] = x.reshape(-1) ** 2
    runs = runs.reshape(-1, 256).sum(1)
    for k in range(len(parts)):
        parts[k] = runs[k :: len(parts)].sum()
    sum[...] = parts.sum()


def gather(y, table, count):
    for source, start, size in table.reshape(count, 3).tolist():
        there = (ctypes.c_char * (size * y.itemsize)).from_address(source) if source else bytes(size * y.itemsize)
        y[start : start + size] = np.frombuffer(there, y.dtype)


def adamw(w, m, v, average, grad, norm2, now, n, decayed, max_norm, decay, beta1, rest1, beta2, rest2, eps, ema, rest):
    norm, (lr, fix1, fix2) = np.sqrt(norm2[0]), now
    if not norm < np.inf:
        return
    g = grad * (max_norm / (norm + 1e-6)) if norm > max_norm else grad
    w[:decayed] *= 1 - lr * decay
    m[...] = beta1 * m + rest1 * g
    v[...] = beta2 * v + rest2 * g * g
    w -= lr / fix1 * m / (np.sqrt(v) / fix2 + eps)
    if average is not None:
        average[...] = ema * average + rest * w


def _pixels(i, j, u, v, sizes):
    """Return the index of pixels in a flat image, and whether they lie inside."""
    row = i * sizes["STRIDE_H"] + u - sizes["PAD_H"]
    column = j * sizes["STRIDE_W"] + v - sizes["PAD_W"]
    H, W = sizes["IN_H"], sizes["IN_W"]
    return row * W + column, (row >= 0) & (row < H) & (column >= 0) & (column < W)


def _windows(B, sizes):
    """Return, for each entry of the columns in order, its index in the flat x, and if it lies inside."""
    shape = "GROUPS", "OUT_H", "OUT_W", "KERNEL_H", "KERNEL_W", "CHANNELS"
    G, *shape = (sizes[name] for name in shape)
    g, b, i, j, u, v, c = np.indices((G, B, *shape)).reshape(7, -1)
    pixel, inside = _pixels(i, j, u, v, sizes)
    return ((b * sizes["IN_H"] * sizes["IN_W"] + pixel) * G + g) * sizes["CHANNELS"] + c, inside


def im2col(columns, x, n, **sizes):
    at, inside = _windows(len(x), sizes)
    store(columns, np.where(inside, from_bf16(x).reshape(-1)[np.where(inside, at, 0)], 0))


def col2im(x, columns, n, B, **sizes):
    at, inside = _windows(B, sizes)
    sums = np.zeros(x.size, from_bf16(columns).dtype)
    np.add.at(sums, at[inside], from_bf16(columns).reshape(-1)[inside])
    store(x, sums)


def _pooled(n, sizes):
    """Return, for n numbers of y and each offset of a window, the index in x and if it lies inside, (n, kh·kw)."""
    C, Ho, Wo = sizes["CHANNELS"], sizes["OUT_H"], sizes["OUT_W"]
    index = np.arange(n)[:, None]
    b, i, j, c = index // (Ho * Wo * C), index // (Wo * C) % Ho, index // C % Wo, index % C
    u, v = np.divmod(np.arange(sizes["KERNEL_H"] * sizes["KERNEL_W"]), sizes["KERNEL_W"])
    pixel, inside = _pixels(i, j, u, v, sizes)
    return (b * sizes["IN_H"] * sizes["IN_W"] + pixel) * C + c, inside


def max_pool(y, best, x, n, **sizes):
    at, inside = _pooled(n, sizes)
    windows = np.where(inside, from_bf16(x).reshape(-1)[np.where(inside, at, 0)], -np.inf)
    best.reshape(-1)[...] = windows.argmax(1)
    store(y, windows.max(1))


def max_pool_dx(dx, dy, best, n, **sizes):
    at, inside = (a[np.arange(best.size), best.reshape(-1)] for a in _pooled(best.size, sizes))
    sums = np.zeros(dx.size, from_bf16(dy).dtype)
    np.add.at(sums, at[inside], from_bf16(dy).reshape(-1)[inside])
    store(dx, sums)


def residual(z, x, y, b, m, rows, C, x_rows, span):
    y = from_bf16(y).reshape(-1, span, C) + (0 if b is None else b)
    y = y if m is None else y * m.reshape(-1, 1, 1)
    z.reshape(-1, x_rows, C)[...] = x.reshape(x_rows, C) + y.reshape(-1, x_rows, C)


def residual_dx(db, parts, tickets, dy, dz, m, span, rows, C, chunk):
    found = np.repeat(m, span)[:, None] * dz.reshape(rows, C)
    store(dy, found)
    column_sums(db, parts, tickets, found, None, rows, C, chunk)


def to_fp32(y, x, n):
    y[...] = from_bf16(x)


def to_bf16(y, x, n):
    store(y, x)


def addresses(at, m, inner, count):
    far, near = np.divmod(np.arange(count, dtype=np.uint64), np.uint64(inner))
    for k in range(5):
        at[k] = m["start"][k] + far * m["outer"][k] + near * m["inner"][k]


AUGMENTATIONS = (
    "identity crop affine brightness contrast color sharpness posterize solarize autocontrast equalize invert"
)


def augment(y, x, chosen, *, HEIGHT, WIDTH, CHANNELS):
    """``transforms``, an image at a time."""
    H, W, C = HEIGHT, WIDTH, CHANNELS
    pictures, results = x.reshape(-1, 1, H, W, C), y.reshape(-1, 1, H, W, C)
    for picture, result, (operation, *numbers) in zip(pictures, results, chosen, strict=True):
        name, amount = AUGMENTATIONS.split()[operation], np.array(numbers[:1], "int32").view("float32")
        if name == "identity":
            result[...] = picture
        elif name == "crop":
            down, right, mirrored = numbers[:3]
            widths = ((0, 0), (H - 1, H - 1), (W - 1, W - 1), (0, 0))
            padded = np.pad(picture[:, :, ::-1] if mirrored else picture, widths, "reflect")
            result[...] = padded[:, H - 1 + down :, W - 1 + right :][:, :H, :W]
        elif name == "affine":
            matrix = np.array([numbers[:3], numbers[3:6], [0, 0, 2**16]]) / 2**16
            matrix[:2, 2] -= matrix[:2, :2].sum(1) / 2  # numbers of pixels begin at the first one's center
            result[...] = transforms.affine(picture, matrix[None])
        elif name in ("autocontrast", "equalize", "invert"):
            result[...] = getattr(transforms, name)(picture)
        else:
            result[...] = getattr(transforms, name)(picture, amount)
