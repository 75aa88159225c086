"""Multi-head self-attention as one op: its backward needs only the packed input and the attention weights."""

import math

from ..autograd import op
from ..backend import array_module, default_rng
from .noise import keep_mask


@op
def attention(qkv, *, num_heads, dropout=0.0, rng=None):
    """y = A v per head,  A = softmax(q kᵀ / √d) for qkv (B, N, 3C) = [q | k | v], C = num_heads · d, y (B, N, C)

    dv = Aᵀ dy,  dA = dy vᵀ,  dS = A (dA - Σ_j dA A) / √d,  dq = dS k,  dk = dSᵀ q,  where Σ_j dA_ij A_ij = dy_i y_i

    With ``dropout`` p each weight is 0 with probability p and otherwise divided by 1 - p.
    """
    xp = array_module(qkv)
    if qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"needs qkv (B, N, 3C) with C divisible by num_heads={num_heads}")
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    d = C // num_heads
    scale = 1 / math.sqrt(d)
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).transpose(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    A = (q * scale) @ _turned(k)
    A -= A.max(-1, keepdims=True)
    xp.exp(A, out=A)
    A /= A @ xp.ones((N, 1), A.dtype)
    keep = keep_mask(A, A.shape, dropout, default_rng(rng))
    y = xp.empty((B, N, num_heads, d), qkv.dtype)
    xp.matmul(A if keep is None else A * keep, v, out=y.swapaxes(1, 2))

    def backward(dy):
        dy = dy.reshape(B, N, num_heads, d)
        sums = xp.einsum("bnhd,bnhd->bhn", dy, y)[..., None]  # Σ_j dA A, also with dropout
        dy = dy.swapaxes(1, 2)
        dqkv = xp.empty((B, N, 3, num_heads, d), dy.dtype)
        dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
        xp.matmul((A if keep is None else A * keep).swapaxes(-1, -2), dy, out=dv)
        dS = dy @ _turned(v)  # dA
        if keep is not None:
            dS *= keep
        dS -= sums
        dS *= A
        xp.matmul(dS, k, out=dq)
        xp.matmul(dS.swapaxes(-1, -2), q, out=dk)
        dqkv[:, :, :2] *= scale
        return dqkv.reshape(B, N, 3 * C)

    return y.reshape(B, N, C), backward


def _turned(x):
    """xᵀ as a copy: many small products are faster with both factors in row-major order."""
    return x.swapaxes(-1, -2).copy()


VECTOR_CHUNK = 2**20  # entries of the N x N x C weights held at once: 4 MB in float32, near what a CPU's cache holds


@op
def vector_attention(q, k, v, *, chunk=VECTOR_CHUNK):
    """y_ic = Σ_j a_ijc v_jc,  a_ijc = softmax over j of q_ic k_jc, for q, k, v and y (B, N, C)

    Each channel attends by itself: multi-head attention with as many heads as channels (paper, vector transformer).
    With e = q k and da_ijc = dy_ic v_jc:  de_ijc = a_ijc (da_ijc - Σ_j a_ijc da_ijc) = a_ijc dy_ic (v_jc - y_ic), so
    dq_ic = Σ_j de_ijc k_jc = dy_ic (Σ_j a_ijc k_jc v_jc - y_ic Σ_j a_ijc k_jc)
    dk_jc = Σ_i de_ijc q_ic = v_jc Σ_i a_ijc dy_ic q_ic - Σ_i a_ijc dy_ic q_ic y_ic,  dv_jc = Σ_i a_ijc dy_ic

    The weights a are made for a few channels at a time, at most ``chunk`` entries (but at least one channel of one
    sample, N x N), and made again in backward: memory grows with N C and N², not with N² C.
    """
    xp = array_module(q)
    if q.ndim != 3 or not q.shape == k.shape == v.shape or chunk < 1:
        raise ValueError(f"needs q, k and v of one shape (B, N, C), and chunk >= 1; got chunk={chunk}")
    B, N, C = q.shape
    q, k, v = (x.swapaxes(1, 2).reshape(B * C, N) for x in (q, k, v))  # a row for each channel of each sample
    largest = xp.maximum(q * k.max(1, keepdims=True), q * k.min(1, keepdims=True))  # max_j q_i k_j
    left, right = xp.stack((q, -largest), 2), xp.stack((k, xp.ones_like(k)), 1)
    step = max(1, chunk // N**2)
    parts = [slice(start, start + step) for start in range(0, B * C, step)]

    def weights(part):  # a_ij times its row's sum, (rows, N, N)
        a = left[part] @ right[part]  # q_i k_j - largest_i in one pass
        return xp.exp(a, out=a)

    y = xp.stack((v, xp.ones_like(v)), -1)
    for part in parts:
        y[part] = weights(part) @ y[part]
    y, total = y[..., 0] / y[..., 1], y[..., 1].copy()

    def backward(dy):
        dy = dy.swapaxes(1, 2).reshape(B * C, N) / total
        over_j, over_i = xp.stack((k * v, k), -1), xp.stack((dy, dy * q, dy * q * y), -1)
        for part in parts:
            a = weights(part)
            over_j[part], over_i[part] = a @ over_j[part], a.swapaxes(1, 2) @ over_i[part]
        dq, dk = dy * (over_j[..., 0] - y * over_j[..., 1]), v * over_i[..., 1] - over_i[..., 2]
        return tuple(dx.reshape(B, C, N).swapaxes(1, 2) for dx in (dq, dk, over_i[..., 0]))

    return y.reshape(B, C, N).swapaxes(1, 2), backward
