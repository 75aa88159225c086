"""TokenLearner: S tokens, each a weighted sum of all pixels, with weights computed from the image itself.

    z_i = ρ(x ⊙ γ(α_i(x)))     paper, section 3.1, for i = 1 … S

α_i(x) is a map with one weight per pixel, γ repeats it over the channels, ρ averages over the pixels. With the maps as
the rows of a matrix A (S, H·W) this is Z = κ A x (``ops.token_pool``) with κ = 1 / (H·W). The two versions differ in
how they compute A.

TokenFuser is the way back to all pixels: each gets a weighted sum of the S tokens, with weights computed from itself.

Scenic is the authors' code. The classes list how it differs from the paper, and how this file differs from both.
"""

from .. import ops
from ..backend import default_rng
from .layers import Conv2d, Dropout, LayerNorm, Linear
from .module import Module, constant
from .transformer import MLP


class TokenLearner(Module):
    """(B, H, W, channels) -> (B, num_tokens, channels).

    ``version="1.0"`` (paper): ``n_conv`` 3x3 convolutions with GELU between them, then a sigmoid.
    ``version="1.1"`` (Scenic since 2022): an MLP with ``hidden`` units at each pixel, then a softmax over the pixels,
    so each token is a convex combination of pixels and ``pool`` does not apply.
    ``pre_norm=False`` omits the LayerNorm before the convolutions or the MLP. It affects only the maps; the tokens are
    sums of the input itself. There may be more tokens than pixels, which saves nothing.

    Differences from the paper and from Scenic: version 1.0 pools by the paper's mean over the pixels, whereas Scenic
    sums (``pool="sum"``). The LayerNorm is Scenic's; the paper's formula has none. The last layer of version 1.1 starts
    ten times smaller than Scenic's, so all maps start nearly even: a token that starts off its object may lose it. The
    default is the paper's version 1.0 with the LayerNorm. ``minitl train`` uses version 1.1 without it, so that faint
    patches are not scaled up and the maps are sharper.

    Raises ValueError for another version or pool, or sizes below 1.
    """

    def __init__(
        self,
        channels,
        num_tokens=8,
        version="1.0",
        pool="mean",
        n_conv=4,
        pre_norm=True,
        hidden=64,
        dropout=0.0,
        rng=None,
    ):
        if version not in ("1.0", "1.1"):
            raise ValueError(f"version must be '1.0' or '1.1', got {version!r}")
        if pool not in ("mean", "sum"):
            raise ValueError(f"pool must be 'mean' or 'sum', got {pool!r}")
        if channels < 1 or num_tokens < 1 or n_conv < 1:
            raise ValueError(f"channels={channels}, num_tokens={num_tokens} and n_conv={n_conv} must be at least 1")
        rng = default_rng(rng)
        self.num_tokens, self.version, self.pool = num_tokens, version, pool
        self.norm = LayerNorm(channels) if pre_norm else None
        if version == "1.0":
            widths = [channels] + [num_tokens] * (n_conv - 1)
            self.convs = [Conv2d(C, num_tokens, 3, padding=1, bias=False, rng=rng) for C in widths]
        else:
            self.mlp = MLP(channels, hidden, num_tokens, dropout, rng)
            self.mlp.fc2.weight.data *= 0.1  # start near the pixel mean

    def maps(self, x):
        """Return the weights A of all pixels, (B, H, W, channels) -> (B, num_tokens, H, W)."""
        if x.ndim != 4:
            raise ValueError(f"TokenLearner needs (B, H, W, channels), got {x.shape}; reshape tokens to their grid")
        B, H, W, _ = x.shape
        y = x if self.norm is None else self.norm(x)
        if self.version == "1.0":
            y = self.convs[0](y)
            for conv in self.convs[1:]:
                y = conv(ops.gelu(y))
        else:
            y = self.mlp(y)
        scores = y.reshape(B, H * W, self.num_tokens).transpose(0, 2, 1)  # (B, H, W, S) -> (B, H·W, S) -> (B, S, H·W)
        A = ops.sigmoid(scores) if self.version == "1.0" else ops.softmax(scores, axis=-1)
        return A.reshape(B, self.num_tokens, H, W)

    def forward(self, x, maps=None):
        """Return the tokens of ``x``; pass ``maps=self.maps(x)`` to avoid computing the maps twice."""
        maps = self.maps(x) if maps is None else maps
        B, H, W, C = x.shape
        mean = self.version == "1.0" and self.pool == "mean"
        return ops.token_pool(maps.reshape(B, -1, H * W), x.reshape(B, H * W, C), mean=mean)


class TokenFuser(Module):
    """(tokens, grid) -> grid + W M(tokens), of the grid's shape: the few tokens act on all pixels.

    tokens (B, S, channels) and grid (B, H, W, channels); for clips, with ``frames`` T > 1, tokens (B, T·S, channels)
    in order of time and grid (B, T, H, W, channels).
    M mixes the tokens, each channel independently: LayerNorm, a learned matrix with bias over all T·S tokens of a clip
    (``mix="all"``, paper) or over each frame's S (``mix="frame"``, Scenic), LayerNorm; ``normalize=False`` omits both
    norms, which are Scenic's. The matrix starts at zero, so the module starts as the identity.
    W (H·W, S) = sigmoid(β(LayerNorm(grid))), the paper's B_w, holds the weights of each frame's tokens at each of its
    pixels, where β is linear (``beta="linear"``, paper) or an MLP with ``hidden`` units (``beta="mlp"``, Scenic).

    Raises ValueError for another mix or beta, sizes below 1, or tokens and a grid that do not fit.
    """

    def __init__(
        self,
        channels,
        num_tokens=8,
        frames=1,
        mix="all",
        beta="linear",
        normalize=True,
        hidden=64,
        dropout=0.0,
        rng=None,
    ):
        if mix not in ("all", "frame"):
            raise ValueError(f"mix must be 'all' or 'frame', got {mix!r}")
        if beta not in ("linear", "mlp"):
            raise ValueError(f"beta must be 'linear' or 'mlp', got {beta!r}")
        if channels < 1 or num_tokens < 1 or frames < 1:
            raise ValueError(f"channels={channels}, num_tokens={num_tokens} and frames={frames} must be at least 1")
        rng = default_rng(rng)
        mixed = num_tokens * frames if mix == "all" else num_tokens
        self.num_tokens, self.frames = num_tokens, frames
        self.mix_norm1 = LayerNorm(channels) if normalize else None
        self.mix = Linear(mixed, mixed, rng=rng)
        self.mix.weight = constant(0, mixed, mixed)
        self.mix_norm2 = LayerNorm(channels) if normalize else None
        self.norm = LayerNorm(channels)
        if beta == "linear":
            self.beta = Linear(channels, num_tokens, bias=False, rng=rng)
        else:
            self.beta = MLP(channels, hidden, num_tokens, dropout, rng)
        self.drop = Dropout(dropout, rng)

    def forward(self, tokens, grid, maps=None):
        """Return the grid with the tokens added; ``maps`` is ignored: only unpooling needs it."""
        B, S, T, C = tokens.shape[0], self.num_tokens, self.frames, grid.shape[-1]
        if tokens.shape != (B, T * S, C) or grid.shape[:-3] not in ([(B, T), (B,)] if T == 1 else [(B, T)]):
            sizes = f"S={S} and T={T}; got {tokens.shape} and {grid.shape}"
            raise ValueError(f"TokenFuser needs tokens (B, T·S, C) and a grid (B, T, H, W, C) with {sizes}")
        y = tokens.reshape(-1, self.mix.weight.shape[0], C)
        y = y if self.mix_norm1 is None else self.mix_norm1(y)
        y = self.mix(y.transpose(0, 2, 1)).transpose(0, 2, 1)  # a linear layer over tokens instead of channels
        y = y if self.mix_norm2 is None else self.mix_norm2(y)
        x = grid.reshape(B * T, -1, C)
        W = ops.sigmoid(self.beta(self.norm(x)))  # (B·T, H·W, S)
        return grid + self.drop(W @ y.reshape(B * T, S, C)).reshape(grid.shape)
