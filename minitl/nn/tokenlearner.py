"""TokenLearner: S tokens, each a weighted average of all pixels, with weights computed from the image itself.

    z_i = ρ(x ⊙ γ(α_i(x)))     paper, section 3.1, for i = 1 … S

α_i(x) is a map of one weight per pixel, γ repeats it over the channels, ρ averages over the pixels. With the maps as
the rows of a matrix A (S, H·W) this is Z = A x. The two versions differ in how they compute A.
"""

from .. import ops
from ..backend import default_rng
from .layers import Conv2d, LayerNorm
from .module import Module
from .transformer import MLP


class TokenLearner(Module):
    """(B, H, W, channels) -> (B, num_tokens, channels).

    ``version="1.0"`` (paper; Scenic): ``n_conv`` 3x3 convolutions with GELU between them, then a sigmoid. ``pool`` is
    ``"mean"`` over the pixels, as in the paper, or ``"sum"``, as in Scenic. ``groups`` cuts the convolutions after
    the first into groups; ``pre_norm=False`` leaves out the LayerNorm before them.
    ``version="1.1"`` (Scenic since 2022): an MLP with ``hidden`` units at each pixel, then a softmax over the pixels,
    so each token is a convex combination of pixels and ``pool`` does not apply.
    Only the branch that makes the maps is normalised; the pooled values are the input itself.
    """

    def __init__(
        self,
        channels,
        num_tokens=8,
        version="1.0",
        pool="mean",
        n_conv=4,
        groups=1,
        pre_norm=True,
        hidden=64,
        dropout=0.0,
        rng=None,
    ):
        if version not in ("1.0", "1.1"):
            raise ValueError(f"version is '1.0' or '1.1', not {version!r}")
        if pool not in ("mean", "sum"):
            raise ValueError(f"pool is 'mean' or 'sum', not {pool!r}")
        if channels < 1 or num_tokens < 1 or n_conv < 1:
            raise ValueError(f"channels={channels}, num_tokens={num_tokens} and n_conv={n_conv} are at least 1")
        rng = default_rng(rng)
        self.num_tokens, self.version, self.pool = num_tokens, version, pool
        self.norm = LayerNorm(channels) if pre_norm else None
        if version == "1.0":
            widths = [channels] + [num_tokens] * n_conv
            cuts = [1] + [groups] * (n_conv - 1)
            self.convs = [
                Conv2d(c, num_tokens, 3, padding=1, groups=g, bias=False, rng=rng)
                for c, g in zip(widths[:-1], cuts, strict=True)
            ]
        else:
            self.mlp = MLP(channels, hidden, num_tokens, dropout, rng)
            self.mlp.fc2.weight.data *= 0.1  # start near the pixel mean: a token that starts sharp may never move

    def maps(self, x):
        """The weights A of all pixels, (B, H, W, channels) -> (B, num_tokens, H, W)."""
        return self._weights(x).reshape(x.shape[0], self.num_tokens, *x.shape[1:3])

    def forward(self, x):
        A = self._weights(x)
        B, H, W, C = x.shape
        mean = self.version == "1.0" and self.pool == "mean"
        return ops.token_pool(A, x.reshape(B, H * W, C), mean=mean)

    def _weights(self, x):
        if x.ndim != 4:
            raise ValueError(
                f"TokenLearner needs (B, H, W, channels), got {x.shape}; reshape tokens to their grid first"
            )
        B, H, W, _ = x.shape
        logits = self._logits(x if self.norm is None else self.norm(x)).reshape(B, H * W, self.num_tokens)
        logits = logits.transpose(0, 2, 1)  # (B, P, S) -> (B, S, P): a transpose, not a reshape
        return ops.sigmoid(logits) if self.version == "1.0" else ops.softmax(logits, axis=-1)

    def _logits(self, x):
        if self.version == "1.1":
            return self.mlp(x)
        for conv in self.convs[:-1]:
            x = ops.gelu(conv(x))
        return self.convs[-1](x)
