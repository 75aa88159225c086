"""Losses: one number for a batch, the mean over its samples."""

from ..autograd import op
from ..backend import array_module


@op
def cross_entropy(logits, targets, *, label_smoothing=0.0):
    """L = -mean_b Σ_k t_bk ln p_bk,  p = softmax(logits),  dlogits = (p Σ_k t - t) dL / B

    logits (B, K); targets are classes (B,) as integers, or soft targets (B, K) of the logits' dtype, whose gradient is
    (s - 1) ln p dL / B.
    ``label_smoothing`` s replaces t by (1 - s) t + s / K. Raises ValueError for a class outside 0 … K-1.
    """
    xp, s = array_module(logits), label_smoothing
    if logits.ndim != 2 or not 0 <= s < 1:
        raise ValueError(f"needs logits (B, K) and label_smoothing in [0, 1), got {s}")
    B, K = logits.shape
    soft = _probabilities(xp.asarray(targets), B, K, logits.dtype)
    t = (1 - s) * soft + s / K
    z = logits - logits.max(1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(1, keepdims=True))

    def backward(dL):
        dlogits = (xp.exp(log_p) * t.sum(1, keepdims=True) - t) * (dL / B)
        return dlogits, log_p * (dL * (s - 1) / B) if soft is targets else None

    return -(t * xp.where(t == 0, 0, log_p)).sum() / B, backward  # 0 ln 0 counts as 0


def _probabilities(targets, B, K, dtype):
    """Return classes (B,) as rows of probabilities (B, K); soft targets (B, K) as they are."""
    if targets.dtype == dtype and targets.shape == (B, K):
        return targets
    if targets.dtype.kind not in "iu" or targets.shape != (B,):
        raise ValueError(f"targets are classes ({B},) as integers or soft targets ({B}, {K}) as {dtype}")
    if B and not 0 <= int(targets.min()) <= int(targets.max()) < K:
        raise ValueError(f"a class in targets is outside 0 … {K - 1}: they span {targets.min()} … {targets.max()}")
    return (targets[:, None] == array_module(targets).arange(K)).astype(dtype)


@op
def binary_cross_entropy_with_logits(logits, targets):
    """L = mean of -t ln p - (1 - t) ln(1 - p) = |x| w + ln(1 + e^-|x|),  p = sigmoid(x),  x logits, t targets

    w = 1 - t where x > 0, else t.  dx = (p - t) dL / n,  dt = -x dL / n  for n logits
    """
    xp, x, t, n = array_module(logits), logits, targets, logits.size
    if t.shape != x.shape or t.dtype != x.dtype:
        raise ValueError("targets need the shape and dtype of the logits")
    e = xp.exp(-xp.abs(x))
    w = xp.where(x > 0, 1 - t, t)

    def backward(dL):
        p = xp.where(x >= 0, 1, e) / (1 + e)
        return (p - t) * (dL / n), -x * (dL / n)

    return (xp.where(w == 0, 0, xp.abs(x)) * w + xp.log1p(e)).mean(), backward  # 0 · ∞ counts as 0
