"""Self-attention, as single ops: their backward passes need only the inputs and the attention weights."""

import math

from ..autograd import op
from ..backend import array_module
from .noise import keep_mask


@op
def attention(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    """y = A v,  A = softmax(S),  S = q kᵀ / √d  per head,  [q | k | v] = qkv + b

    qkv (B, N, 3C), b (3C), y (B, N, C), C = num_heads · d.
    dv = Aᵀ dy,  dA = dy vᵀ,  dS = A (dA - Σ_j dA A),  dq = dS k / √d,  dk = dSᵀ q / √d

    With ``dropout`` p a mask m multiplies A: each weight is 0 with probability p and is divided by 1 - p otherwise.
    """
    xp = array_module(qkv)
    fits = qkv.ndim == 3 and num_heads > 0 and qkv.shape[2] % (3 * num_heads) == 0
    if not fits or (b is not None and b.shape != qkv.shape[2:]):
        raise ValueError(f"needs qkv (B, N, 3C), b (3C) and C divisible by num_heads={num_heads}")
    qkv = qkv if b is None else qkv + b
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    d = C // num_heads
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).transpose(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    S = q @ k.swapaxes(2, 3) / math.sqrt(d)  # (B, heads, N, N)
    e = xp.exp(S - S.max(-1, keepdims=True))
    A = e / e.sum(-1, keepdims=True)
    m = keep_mask(A, A.shape, dropout, rng)
    y = (m * A) @ v

    def backward(dy):
        dy = dy.reshape(B, N, num_heads, d).swapaxes(1, 2)
        dv = (m * A).swapaxes(2, 3) @ dy
        dA = m * (dy @ v.swapaxes(2, 3))
        dS = A * (dA - (dA * A).sum(-1, keepdims=True))
        dq, dk = dS @ k / math.sqrt(d), dS.swapaxes(2, 3) @ q / math.sqrt(d)
        dqkv = xp.stack((dq, dk, dv)).transpose(1, 3, 0, 2, 4).reshape(B, N, 3 * C)
        return dqkv, None if b is None else dqkv

    return y.swapaxes(1, 2).reshape(B, N, C), backward


@op
def vector_attention(q, k, v):
    """y_ic = Σ_j A_ijc v_jc,  A_ijc = softmax over j of S_ijc = q_ic k_jc, for q, k, v and y (B, N, C)

    Each channel attends independently: attention with as many heads as channels (paper, vector transformer).
    dS_ijc = A_ijc dy_ic (v_jc - y_ic),  dq_ic = Σ_j dS_ijc k_jc,  dk_jc = Σ_i dS_ijc q_ic,  dv_jc = Σ_i A_ijc dy_ic
    """
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        raise ValueError("needs q, k and v of one shape (B, N, C)")
    xp = array_module(q)
    S = q[:, :, None] * k[:, None]  # (B, i, j, C)
    e = xp.exp(S - S.max(2, keepdims=True))
    A = e / e.sum(2, keepdims=True)
    y = (A * v[:, None]).sum(2)

    def backward(dy):
        dS = A * dy[:, :, None] * (v[:, None] - y[:, :, None])
        return (dS * k[:, None]).sum(2), (dS * q[:, :, None]).sum(1), (A * dy[:, :, None]).sum(1)

    return y, backward
