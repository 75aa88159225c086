"""The linear layer, and the product that TokenLearner is made of."""

from ..autograd import op
from ..backend import array_module


@op
def linear(x, W, b=None):
    """y = x W + b for x (..., in), W (in, out), b (out)

    dx = dy Wᵀ,  dW = xᵀ dy,  db = Σ dy

    All leading axes are flattened first, so each of the three products is a single matrix product. The one for dx is
    left to the engine, which calls it only where x needs a gradient: pixels do not.
    """
    if W.ndim != 2 or x.shape[-1:] != W.shape[:1] or (b is not None and b.shape != W.shape[1:]):
        raise ValueError("needs x (..., in), W (in, out), b (out)")
    xp, shape = array_module(x), x.shape
    rows = x.reshape(-1, x.shape[-1])  # x itself is not kept: rows may be a copy
    y = rows @ W
    if b is not None:
        y += b

    def backward(dy):
        dy = dy.reshape(-1, dy.shape[-1])
        db = None if b is None else xp.ones(len(dy), dy.dtype) @ dy  # a sum, three times as fast as sum(0)
        return lambda: (dy @ W.T).reshape(shape), rows.T @ dy, db

    return y.reshape(*x.shape[:-1], W.shape[1]), backward


@op
def token_pool(A, x, *, mean=False):
    """Z = κ A x: S weighted averages of P pixels (paper, section 3.1: ρ and ⊙ together)

    A (B, S, P) or (1, S, P), x (B, P, C), Z (B, S, C); κ is 1, or 1/P with ``mean``.
    dA = κ dZ xᵀ,  dx = κ Aᵀ dZ
    """
    if A.ndim != 3 or x.ndim != 3 or A.shape[0] not in (1, x.shape[0]) or A.shape[2] != x.shape[1]:
        raise ValueError("needs A (B, S, P) or (1, S, P), and x (B, P, C)")
    k = 1 / x.shape[1] if mean else 1.0

    def backward(dZ):
        dZ = k * dZ
        return dZ @ x.swapaxes(1, 2), A.swapaxes(1, 2) @ dZ

    return k * (A @ x), backward
