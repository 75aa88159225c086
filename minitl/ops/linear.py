"""The linear layer, and the product at the heart of TokenLearner."""

import numpy as np

from ..autograd import form, op


@op
def linear(x, W, b=None):
    """y = x W + b for x (..., in), W (in, out), b (out,)

    dx = dy Wᵀ,  dW = xᵀ dy,  db = Σ dy

    All leading axes are flattened first, so each of the three products is a single matrix product. The one for dx is
    returned as a function, which the engine calls only if x needs a gradient (input images do not).
    """
    fits = x.dtype.kind == "f" and W.ndim == 2 and x.shape[-1:] == W.shape[:1]
    if not fits or (b is not None and b.shape != W.shape[1:]):
        raise ValueError("needs x (..., in) of floats, W (in, out), b (out,)")
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    y = x @ W if b is None else x @ W + b

    def backward(dy):
        dy = dy.reshape(-1, dy.shape[-1])
        return lambda: (dy @ W.T).reshape(shape), x.T @ dy, None if b is None else dy.sum(0)

    return y.reshape(*shape[:-1], W.shape[1]), backward


@op
def linear_gelu(x, W, b):
    """y = GELU(x W + b): linear, then gelu, as one op because a GPU computes both in fewer launches"""
    device = "cpu" if isinstance(x, np.ndarray) else "cuda"
    u, linear_backward = form("linear", device)(x, W, b)
    y, gelu_backward = form("gelu", device)(u)

    def backward(dy):
        du = gelu_backward(dy)
        return linear_backward(du[0] if isinstance(du, tuple) else du)

    return y, backward


@op
def token_pool(A, x, *, mean=False):
    """Z = κ A x: S weighted sums of P pixels (paper, section 3.1: ρ and ⊙ together)

    A (B, S, P) or (1, S, P), x (B, P, C), Z (B, S, C); κ is 1, or 1/P with ``mean``.
    dA = κ dZ xᵀ,  dx = κ Aᵀ dZ
    """
    if A.ndim != 3 or x.ndim != 3 or A.shape[0] not in (1, x.shape[0]) or A.shape[2] != x.shape[1]:
        raise ValueError("needs A (B, S, P) or (1, S, P), and x (B, P, C)")
    kappa = 1 / x.shape[1] if mean else 1.0

    def backward(dZ):
        return kappa * (dZ @ x.swapaxes(1, 2)), kappa * (A.swapaxes(1, 2) @ dZ)

    return kappa * (A @ x), backward
