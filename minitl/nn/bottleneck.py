"""The convolutional video model whose last block works on tokens (paper: Bottleneck Transformer, X(2+1)D).

All blocks are inverted bottlenecks: a 1x1x1 convolution to more channels, layers with a receptive field, a 1x1x1
convolution back, and a residual. In an X(2+1)D block these layers are a 2-D convolution of each frame and a 1-D
convolution over time; in the last block, TokenLearner, vector attention among the tokens of all frames and TokenFuser
replace the latter. Clips are (B, T, H, W, C) throughout.
"""

from dataclasses import dataclass
from typing import Literal

from .. import ops
from ..autograd import Tensor
from ..backend import default_rng
from ..errors import InputError, check_types
from .layers import BatchNorm2d, Conv2d, Linear
from .module import Module
from .tokenlearner import TokenFuser, TokenLearner


class VectorAttention(Module):
    """Attention with separate weights for each channel, (B, N, dim) -> (B, N, dim) (paper, vector transformer).

    It is multi-head attention with as many heads as channels, without a linear layer after it.
    """

    def __init__(self, dim, rng=None):
        rng = default_rng(rng)
        self.q, self.k, self.v = (Linear(dim, dim, rng=rng) for _ in range(3))

    def forward(self, x):
        return ops.vector_attention(self.q(x), self.k(x), self.v(x))


class SpaceConv(Module):
    """3x3 convolution of each frame: (B, T, H, W, in_channels) -> (B, T, ⌈H/stride⌉, ⌈W/stride⌉, out_channels)."""

    def __init__(self, in_channels, out_channels, stride=1, rng=None):
        self.conv = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False, rng=rng)

    def forward(self, x):
        y = self.conv(_fold(x))  # (B·T, H', W', C')
        return y.reshape(*x.shape[:2], *y.shape[1:])


class TimeConv(Module):
    """Convolution over three frames at each pixel separately: (B, T, H, W, channels) -> the same shape."""

    def __init__(self, channels, rng=None):
        self.conv = Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False, rng=rng)

    def forward(self, x):
        B, T, H, W, C = x.shape
        return self.conv(x.reshape(B, T, H * W, C)).reshape(B, T, H, W, C)  # a 2-D convolution over (time, pixel)


class TokenMixer(Module):
    """TokenLearner on each frame, vector attention among the tokens of all frames, TokenFuser with the residual.

    (B, frames, H, W, channels) -> the same shape. A single convolution makes the maps, as in the paper.
    """

    def __init__(self, channels, num_tokens, frames, rng=None):
        rng = default_rng(rng)
        self.learner = TokenLearner(channels, num_tokens, n_conv=1, rng=rng)
        self.attention = VectorAttention(channels, rng)
        self.fuser = TokenFuser(channels, num_tokens, frames=frames, mix="all", rng=rng)

    def maps(self, x):
        """Return the weights of each token: (B, T, H, W, channels) -> (B, T, num_tokens, H, W)."""
        A = self.learner.maps(_fold(x))
        return A.reshape(*x.shape[:2], *A.shape[1:])

    def forward(self, x):
        tokens = self.learner(_fold(x)).reshape(x.shape[0], -1, x.shape[-1])  # (B·T, S, C) -> (B, T·S, C)
        return self.fuser(self.attention(tokens), x)


class Bottleneck(Module):
    """x + reduce(layers(expand(x))), with batch norm after each part: (B, T, H, W, channels) -> the same shape.

    ``expand`` and ``reduce`` are 1x1x1 convolutions, that is linear layers, to ``inner`` channels and back; ``layers``
    are Modules that keep the shape (B, T, H, W, inner). ReLU follows each batch norm, the last one after the sum.
    """

    def __init__(self, channels, inner, layers, rng=None):
        rng = default_rng(rng)
        self.expand, self.norm1 = Linear(channels, inner, bias=False, rng=rng), BatchNorm2d(inner)
        self.layers, self.norms = list(layers), [BatchNorm2d(inner) for _ in layers]
        self.reduce, self.norm2 = Linear(inner, channels, bias=False, rng=rng), BatchNorm2d(channels)

    def inside(self, x, count):
        """Return the output of the first ``count`` layers, (B, T, H, W, inner)."""
        y = ops.relu(self.norm1(self.expand(x)))
        for layer, norm in zip(self.layers[:count], self.norms, strict=False):
            y = ops.relu(norm(layer(y)))
        return y

    def forward(self, x):
        return ops.relu(x + self.norm2(self.reduce(self.inside(x, len(self.layers)))))


@dataclass(frozen=True)
class X21DConfig:
    """Options of an X(2+1)D model. Raises InputError for values that cannot be built."""

    widths: tuple[int, ...] = (8, 24)
    """channels of each stage; each stage starts by halving height and width"""
    expansion: int = 2
    """factor by which a block is wider inside; about 3.4 in the paper"""
    last: Literal["tokens", "conv"] = "tokens"
    """layer after the 2-D convolution in the last block: a TokenMixer or a convolution over time"""
    num_tokens: int = 8
    """tokens per frame in the last block"""

    def __post_init__(self):
        check_types(self)
        if not self.widths:
            raise InputError("widths is empty; give the channels of at least one stage")
        for name in ("widths", "expansion", "num_tokens"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise InputError(f"{name} must be at least 1, got {value}")


class X21D(Module):
    """X(2+1)D model: clips (B, T, H, W, C), normalized floats, to logits (B, num_classes).

    ``config`` is an X21DConfig, ``spec`` the DataSpec of the clips. Each stage is a 3x3 convolution with stride 2 and
    an X(2+1)D block; one more block follows, with tokens unless ``config.last`` is ``"conv"``; the head reads the mean
    over frames and pixels.
    """

    def __init__(self, config, spec, rng=None):
        rng = default_rng(rng)
        self.config, self.spec = config, spec
        pairs = list(zip((spec.channels, *config.widths), config.widths, strict=False))
        self.downs = [SpaceConv(c, width, stride=2, rng=rng) for c, width in pairs]
        self.norms = [BatchNorm2d(width) for width in config.widths]
        self.blocks = [self._block(width, "conv", rng) for width in config.widths]
        self.last = self._block(config.widths[-1], config.last, rng)
        self.head = Linear(config.widths[-1], spec.num_classes, rng=rng)

    def _block(self, width, kind, rng):
        inner = self.config.expansion * width
        tokens = kind == "tokens"
        mixer = TokenMixer(inner, self.config.num_tokens, self.spec.frames, rng) if tokens else TimeConv(inner, rng)
        return Bottleneck(width, inner, [SpaceConv(inner, inner, rng=rng), mixer], rng)

    def forward(self, clips):
        return self.head(ops.global_avg_pool(self.last(self._features(clips))))

    @property
    def has_maps(self):
        """True if there are tokens, whose maps ``maps`` returns."""
        return self.config.last == "tokens"

    def maps(self, clips):
        """Return each token's weights: (B, T, H, W, C) -> (B, T, num_tokens, rows, columns).

        Raises ValueError if the model has no tokens.
        """
        if not self.has_maps:
            raise ValueError("this X21D has no tokens, so it has no maps")
        return self.last.layers[1].maps(self.last.inside(self._features(clips), 1))

    def _features(self, clips):
        x = clips if isinstance(clips, Tensor) else Tensor(clips)
        expected = (self.spec.frames, *self.spec.image_size, self.spec.channels)
        if x.ndim != 5 or x.shape[1:] != expected:
            raise ValueError(f"this X21D takes clips (B, {', '.join(map(str, expected))}), got {x.shape}")
        if x.dtype != self.head.weight.dtype:
            raise TypeError(f"this X21D computes in {self.head.weight.dtype}, the clips are {x.dtype}; convert them")
        for down, norm, block in zip(self.downs, self.norms, self.blocks, strict=True):
            x = block(ops.relu(norm(down(x))))
        return x


def _fold(clips):
    return clips.reshape(-1, *clips.shape[2:])  # (B, T, H, W, C) -> (B·T, H, W, C)
