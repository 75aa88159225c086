"""The convolutional video model whose last block works on tokens (paper: Bottleneck Transformer, X(2+1)D).

All blocks are bottlenecks turned inside out: 1x1x1 to more channels, layers that look around, 1x1x1 back, residual.
In an X(2+1)D block these layers are a 2-D convolution of each frame and a 1-D convolution over time; in the last block
the one over time gives way to TokenLearner, vector attention among the tokens of all frames, and TokenFuser.
Clips are (B, T, H, W, C) throughout.
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
    """(B, N, dim) -> (B, N, dim): attention in which each channel has its own weights (paper, vector transformer).

    It is multi-head attention with as many heads as channels, without a linear layer behind it.
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
    """Convolution over three frames, at each pixel by itself: (B, T, H, W, channels) -> the same shape."""

    def __init__(self, channels, rng=None):
        self.conv = Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False, rng=rng)

    def forward(self, x):
        B, T, H, W, C = x.shape
        return self.conv(x.reshape(B, T, H * W, C)).reshape(B, T, H, W, C)  # a 2-D convolution over (time, pixel)


class TokenMixer(Module):
    """TokenLearner on each frame, vector attention among the tokens of all frames, TokenFuser with the residual.

    (B, frames, H, W, channels) -> the same shape. The maps come from a single convolution, as in the paper.
    """

    def __init__(self, channels, num_tokens, frames, rng=None):
        rng = default_rng(rng)
        self.learner = TokenLearner(channels, num_tokens, n_conv=1, rng=rng)
        self.attention = VectorAttention(channels, rng)
        self.fuser = TokenFuser(channels, num_tokens, frames=frames, mix="all", rng=rng)

    def maps(self, x):
        """(B, T, H, W, channels) -> (B, T, num_tokens, H, W)."""
        A = self.learner.maps(_fold(x))
        return A.reshape(*x.shape[:2], *A.shape[1:])

    def forward(self, x):
        tokens = self.learner(_fold(x)).reshape(x.shape[0], -1, x.shape[-1])  # (B·T, S, C) -> (B, T·S, C)
        return self.fuser(self.attention(tokens), x)


class Bottleneck(Module):
    """x + reduce(layers(expand(x))), with batch norm behind each part: (B, T, H, W, channels) -> the same shape.

    ``expand`` and ``reduce`` are 1x1x1 convolutions, that is linear layers, to ``inner`` channels and back; ``layers``
    are Modules that keep the shape (B, T, H, W, inner). ReLU follows each batch norm, the last one after the sum.
    """

    def __init__(self, channels, inner, layers, rng=None):
        rng = default_rng(rng)
        self.expand, self.norm1 = Linear(channels, inner, bias=False, rng=rng), BatchNorm2d(inner)
        self.layers, self.norms = list(layers), [BatchNorm2d(inner) for _ in layers]
        self.reduce, self.norm2 = Linear(inner, channels, bias=False, rng=rng), BatchNorm2d(channels)

    def inside(self, x, count):
        """What comes out of the first ``count`` of the layers, (B, T, H, W, inner)."""
        y = ops.relu(self.norm1(self.expand(x)))
        for layer, norm in zip(self.layers[:count], self.norms, strict=False):
            y = ops.relu(norm(layer(y)))
        return y

    def forward(self, x):
        return ops.relu(x + self.norm2(self.reduce(self.inside(x, len(self.layers)))))


@dataclass(frozen=True)
class X21DConfig:
    """Sizes of an X(2+1)D model, checked when it is made. Raises InputError for what cannot be built."""

    frames: int = 8
    """frames of a clip"""
    image_size: tuple[int, int] = (32, 32)
    """height and width of a frame in pixels"""
    channels: int = 3
    """colour channels"""
    num_classes: int = 10
    """outputs of the head"""
    widths: tuple[int, ...] = (8, 24)
    """channels of each stage; each starts by halving height and width"""
    expansion: int = 2
    """how many times wider a block is inside; about 3.4 in the paper"""
    last: Literal["tokens", "conv"] = "tokens"
    """what follows the 2-D convolution in the last block: TokenLearner and its company, or a convolution over time"""
    num_tokens: int = 8
    """tokens per frame in the last block"""

    def __post_init__(self):
        check_types(self)
        if not self.widths:
            raise InputError("widths is empty; give the channels of at least one stage")
        for name in ("frames", "image_size", "channels", "num_classes", "widths", "expansion", "num_tokens"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise InputError(f"{name} is at least 1, got {value}")


class X21D(Module):
    """Clips (B, frames, height, width, channels), float and normalised, to logits (B, num_classes).

    Each stage is a 3x3 convolution with stride 2 and an X(2+1)D block; one more block follows, with tokens unless
    ``config.last`` is ``"conv"``; the head reads the mean over frames and pixels.
    """

    def __init__(self, config, rng=None):
        rng = default_rng(rng)
        self.config = config
        pairs = list(zip((config.channels, *config.widths), config.widths, strict=False))
        self.downs = [SpaceConv(c, width, stride=2, rng=rng) for c, width in pairs]
        self.norms = [BatchNorm2d(width) for width in config.widths]
        self.blocks = [self._block(width, "conv", rng) for width in config.widths]
        self.last = self._block(config.widths[-1], config.last, rng)
        self.head = Linear(config.widths[-1], config.num_classes, rng=rng)

    def _block(self, width, kind, rng):
        inner = self.config.expansion * width
        tokens = kind == "tokens"
        mixer = TokenMixer(inner, self.config.num_tokens, self.config.frames, rng) if tokens else TimeConv(inner, rng)
        return Bottleneck(width, inner, [SpaceConv(inner, inner, rng=rng), mixer], rng)

    def forward(self, clips):
        return self.head(ops.global_avg_pool(self.last(self._features(clips))))

    @property
    def has_maps(self):
        """Whether there are tokens, with maps that can be looked at."""
        return self.config.last == "tokens"

    def maps(self, clips):
        """What each token looks at: (B, T, num_tokens, rows, columns). Raises ValueError for a model without tokens."""
        if not self.has_maps:
            raise ValueError("this X21D has no tokens, so it has no maps")
        return self.last.layers[1].maps(self.last.inside(self._features(clips), 1))

    def _features(self, clips):
        x = clips if isinstance(clips, Tensor) else Tensor(clips)
        expected = (self.config.frames, *self.config.image_size, self.config.channels)
        if x.ndim != 5 or x.shape[1:] != expected:
            raise ValueError(f"this X21D takes clips (B, {', '.join(map(str, expected))}), got {x.shape}")
        if x.dtype != self.head.weight.dtype:
            raise TypeError(f"this X21D computes in {self.head.weight.dtype}, the clips are {x.dtype}; convert them")
        for down, norm, block in zip(self.downs, self.norms, self.blocks, strict=True):
            x = block(ops.relu(norm(down(x))))
        return x


def _fold(clips):
    return clips.reshape(-1, *clips.shape[2:])  # (B, T, H, W, C) -> (B·T, H, W, C)
