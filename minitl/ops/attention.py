"""Multi-head self-attention as one op: its backward needs only the packed input and the attention weights."""

import math

from ..autograd import op
from ..backend import array_module, default_rng
from .noise import keep_mask


@op
def attention(qkv, *, num_heads, dropout=0.0, rng=None):
    """y = A v per head,  A = softmax(q kᵀ / √d) for qkv (B, N, 3C) = [q | k | v], C = num_heads · d, y (B, N, C)

    dv = Aᵀ dy,  dA = dy vᵀ,  dS = A (dA - Σ_j dA A) / √d,  dq = dS k,  dk = dSᵀ q

    With ``dropout`` p each weight is 0 with probability p and otherwise divided by 1 - p.
    """
    xp = array_module(qkv)
    if qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"needs qkv (B, N, 3C) with C divisible by num_heads={num_heads}; got {qkv.shape}")
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    d = C // num_heads
    scale = 1 / math.sqrt(d)
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).transpose(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    A = (q * scale) @ k.swapaxes(-1, -2)
    A -= A.max(-1, keepdims=True)
    xp.exp(A, out=A)
    A /= A.sum(-1, keepdims=True)
    keep = keep_mask(A, A.shape, dropout, default_rng(rng))
    y = (A if keep is None else A * keep) @ v

    def backward(dy):
        dy = dy.reshape(B, N, num_heads, d).swapaxes(1, 2)
        dqkv = xp.empty((B, N, 3, num_heads, d), dy.dtype)
        dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
        dv[...] = (A if keep is None else A * keep).swapaxes(-1, -2) @ dy
        dS = dy @ v.swapaxes(-1, -2)  # dA
        if keep is not None:
            dS *= keep
        dS *= A
        dS -= A * dS.sum(-1, keepdims=True)
        dS *= scale
        dq[...] = dS @ k
        dk[...] = dS.swapaxes(-1, -2) @ q
        return dqkv.reshape(B, N, 3 * C)

    return y.swapaxes(1, 2).reshape(B, N, C), backward
