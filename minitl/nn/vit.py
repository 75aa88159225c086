"""A Vision Transformer for images and clips whose tokens may be reduced to a few (paper, sections 3 and 4.1).

Either once, in front of block ``loc``; or, with a way back, in front of that block and each later one, behind which
all tokens are there again: TokenLearner - block - TokenFuser.
"""

import itertools
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..backend import array_module, default_rng
from ..errors import InputError, check_types
from .baselines import grid_shape, make_back, make_tokenizer
from .layers import Conv2d, Dropout, LayerNorm, Linear
from .module import Module, Parameter, constant, normal
from .transformer import EncoderBlock


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT, checked when it is made. Raises InputError for what cannot be built."""

    image_size: tuple[int, int] = (32, 32)
    """height and width of the images or frames in pixels"""
    frames: int = 1
    """frames of a clip; 1 for images"""
    tubelet: int = 1
    """frames per tubelet: with patch_size, what one token is made of; divides frames"""
    channels: int = 3
    """colour channels of the images"""
    num_classes: int = 8
    """outputs of the head"""
    patch_size: int = 4
    """side of a patch in pixels; divides both image sides"""
    stem: Literal["patch", "conv"] = "patch"
    """what makes a token of patch_size x patch_size pixels: a linear layer on the patch, or convolutions, each of which
    halves the image"""
    stem_width: int = 64
    """channels between the convolutions of stem conv"""
    dim: int = 48
    """width of a token"""
    layers: int = 2
    """number of encoder blocks"""
    heads: int = 3
    """attention heads; divides dim"""
    mlp_dim: int = 96
    """hidden width of a block's MLP"""
    positions: Literal["random", "waves"] = "random"
    """how the learned positions start: small and random, or as waves over time, rows and columns"""
    head_pool: Literal["mean", "sequence"] = "mean"
    """what the head reads: the mean of the tokens, or an average with learned weights (sequence pooling)"""
    zero_head: bool = True
    """start the head at zero, with equal odds for all classes"""
    tokenizer: Literal["learner", "pool", "static", "dense", "mean-dense", "query", "gate", "none"] = "learner"
    """TokenLearner; means over a grid; learned maps that ignore the input; a linear layer on all pixels, or on their
    mean; learned queries; spatial gates; or all tokens kept"""
    num_tokens: int = 8
    """tokens that the tokenizer leaves of an image, or of each tubelet's frames"""
    loc: int = 0
    """index of the first block that sees the few tokens, 0 <= loc < layers"""
    back: Literal["none", "fuser", "unpool", "reproject"] = "none"
    """how all tokens come back behind each block from loc on, each with its own tokenizer; none: they do not"""
    version: Literal["1.0", "1.1"] = "1.0"
    """TokenLearner's version: convolutions and sigmoid, or MLP and softmax"""
    pool: Literal["mean", "sum"] = "mean"
    """how version 1.0 pools: the paper's mean or Scenic's sum"""
    pre_norm: bool = True
    """LayerNorm before the layers that make the maps, as in Scenic"""
    hidden: int = 64
    """hidden width of version 1.1's MLP, and of the fuser's"""
    fuser_mix: Literal["all", "frame"] = "all"
    """TokenFuser mixes the tokens of a whole clip, as in the paper, or each frame's, as in Scenic"""
    fuser_beta: Literal["linear", "mlp"] = "linear"
    """TokenFuser's weights at each pixel: the paper's linear layer or Scenic's MLP"""
    fuser_norm: bool = True
    """LayerNorm before and after TokenFuser's mixing matrix, as in Scenic"""
    dropout: float = 0.0
    """drop probability after embedding, attention and MLP layers, and of attention weights"""
    drop_path: float = 0.0
    """probability of skipping a whole block's branch, growing linearly from 0 to this at the last block"""
    recompute: bool = False
    """keep only the input of each block for backward, and compute the block again there: less memory, more time"""

    def __post_init__(self):
        check_types(self)
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is int and name != "loc" and value < 1:
                raise InputError(f"{name} is at least 1, got {value}")
            if field.type is float and not 0 <= value < 1:
                raise InputError(f"{name} lies in [0, 1), got {value}")
        height, width = self.image_size
        if min(height, width) < 1 or height % self.patch_size or width % self.patch_size:
            fit = [n for n in range(2, min(height, width) + 1) if not (height % n or width % n)]
            hint = f"choose one of {', '.join(map(str, fit))}" if fit else "bring the images to another size"
            raise InputError(f"patch_size={self.patch_size} does not divide the image size {height} x {width}; {hint}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise InputError(f"stem='conv' needs a patch_size of 2, 4, 8 …, got {self.patch_size}")
        if self.stem == "conv" and self.tubelet > 1:
            raise InputError(f"stem='conv' sees one frame at a time: tubelet is 1, got {self.tubelet}")
        if self.frames % self.tubelet:
            raise InputError(f"tubelet={self.tubelet} does not divide frames={self.frames}")
        if self.dim % self.heads:
            raise InputError(f"heads={self.heads} does not divide dim={self.dim}")
        if not 0 <= self.loc < self.layers:
            raise InputError(f"loc={self.loc} is not the index of a block: 0 <= loc < layers={self.layers}")
        if self.tokenizer == "pool":
            grid_shape(self.num_tokens, *self.grid)
        if self.back != "none" and self.tokenizer == "none":
            raise InputError(f"back={self.back!r} needs a tokenizer: with tokenizer='none' all tokens stay")
        if self.back == "unpool" and self.tokenizer != "learner":
            raise InputError(f"back='unpool' needs the maps of tokenizer='learner', not of {self.tokenizer!r}")

    @property
    def grid(self):
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def time_steps(self):
        """Tubelets along time, 1 for images."""
        return self.frames // self.tubelet


def patchify(x, size, tubelet=1):
    """Cut images (B, H, W, C) or clips (B, T, H, W, C) into patches (B, N, tubelet·size·size·C).

    N = (T / tubelet)(H / size)(W / size), in the order of time, then row by row.
    """
    B, *_, H, W, C = x.shape
    x = x.reshape(B, -1, tubelet, H // size, size, W // size, size, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, tubelet * size * size * C)


def waves(rng, sides, dim, std=0.3):
    """Positions (1, n, dim) on a grid with these sides: along each, sines and cosines of three lengths, mixed.

    Near places start alike, and are far enough apart to be told from one another at once.
    """
    positions = np.zeros((*sides, dim))
    for axis, n in enumerate(sides):
        phase = np.pi * (np.arange(n)[:, None] + 0.5) / n * (1, 2, 4)
        code = np.concatenate([np.sin(phase), np.cos(phase)], 1) @ rng.standard_normal((6, dim))
        positions += np.expand_dims(std / code.std() * code, [i for i in range(len(sides)) if i != axis])
    return Parameter(positions.reshape(1, -1, dim).astype(np.float32))


def inflate(state, config, how="central"):
    """The ``state_dict`` of an image ViT for the clip ViT of ``config``, to start from (ViViT, section 3.4).

    A tubelet's embedding sees its middle frame alone (``how="central"``) or the mean of its frames (``"average"``);
    positions are repeated at each time. A clip of one repeated image then has the logits of that image, as long as
    nothing else tells the frames apart. Returns new arrays where they change. Raises InputError for another ``how``.
    """
    if how not in ("central", "average"):
        raise InputError(f"how is one of central, average, got {how!r}")
    positions = array_module(state["pos_embed"]).concatenate([state["pos_embed"]] * config.time_steps, 1)
    state = state | {"pos_embed": positions}
    if config.stem == "conv":  # sees one frame at a time anyway
        return state
    patch = state["patch_embed.weight"]
    frames = array_module(patch).zeros((config.tubelet, *patch.shape), patch.dtype)
    if how == "central":
        frames[config.tubelet // 2] = patch
    else:
        frames += patch / config.tubelet
    return state | {"patch_embed.weight": frames.reshape(-1, patch.shape[1])}


class ConvStem(Module):
    """(B, H, W, channels) -> (B, H / 2ⁿ, W / 2ⁿ, dim): n times a 3x3 convolution, max pooling to half the size, ReLU.

    The tokenizer of the Compact Convolutional Transformer (Hassani et al., 2021), with ``width`` channels in between.
    There ReLU comes before pooling, which gives the same numbers for more work.
    """

    def __init__(self, channels, dim, halvings, width=64, rng=None):
        widths = [channels, *[width] * (halvings - 1), dim]
        self.convs = [Conv2d(i, o, 3, padding=1, bias=False, rng=rng) for i, o in itertools.pairwise(widths)]

    def forward(self, x):
        for conv in self.convs:
            x = ops.relu(ops.max_pool2d(conv(x), kernel_size=3, stride=2, padding=1))
        return x


class ViT(Module):
    """Images (B, H, W, channels) or clips (B, T, H, W, channels), float and normalised, to logits (B, num_classes).

    Patches or tubelets are embedded linearly, or images by a convolutional stem, and get a learned position; then come
    the blocks, whose attention is joint over space and time, with the tokenizer in front of block ``loc``; the head
    reads an average of the tokens that are left. There is no class token. Tokenizers see the grid at one time after the
    other and leave T' · num_tokens tokens, T' = frames / tubelet. With a way back, each block from ``loc`` on has its
    own tokenizer and its own way back. Learned tokens may be more than there are patches: that saves nothing, but is no
    error.
    """

    def __init__(self, config, rng=None):
        rng = default_rng(rng)
        self.config, self.rng = config, rng
        N = config.time_steps * config.grid[0] * config.grid[1]
        self.patch_embed = _stem(config, rng)
        if config.positions == "random":
            self.pos_embed = normal(rng, (1, N, config.dim), std=0.02)
        else:
            self.pos_embed = waves(rng, (config.time_steps, *config.grid), config.dim)
        self.drop = Dropout(config.dropout, rng)
        repeats = 1 if config.back == "none" else config.layers - config.loc
        self.tokenizer, *self.later_tokenizers = [_tokenizer(config, rng) for _ in range(repeats)]
        skips = [config.drop_path * i / max(config.layers - 1, 1) for i in range(config.layers)]
        sizes, drops = (config.dim, config.heads, config.mlp_dim), (config.dropout, config.dropout)
        self.blocks = [EncoderBlock(*sizes, *drops, skip, rng) for skip in skips]
        self.backs = [back for _ in range(repeats) if (back := _back(config, rng))]
        self.norm = LayerNorm(config.dim)
        if config.head_pool == "sequence":  # starts as the mean; a bias would change nothing
            self.head_weights = Linear(config.dim, 1, bias=False, rng=rng)
            self.head_weights.weight = constant(0, config.dim, 1)
        self.head = Linear(config.dim, config.num_classes, rng=rng)
        if config.zero_head:
            self.head.weight = constant(0, config.dim, config.num_classes)

    @property
    def has_maps(self):
        """Whether the tokens come from maps over the grid that can be looked at."""
        return hasattr(self.tokenizer, "maps")

    def forward(self, images):
        x = self._embed(images)
        tokenizers = [self.tokenizer, *self.later_tokenizers] if self.tokenizer else []
        for i, block in enumerate(self.blocks):
            j = i - self.config.loc
            x = self._few(j, tokenizers[j], block, x) if 0 <= j < len(tokenizers) else self._all(block, x)
        return self.head(self._average(self.norm(x)))

    def _average(self, x):
        """The tokens (B, N, dim) -> (B, dim)."""
        if self.config.head_pool == "mean":
            return x.mean(axis=1)
        weights = ops.softmax(self.head_weights(x).transpose(0, 2, 1), axis=-1)  # (B, 1, N)
        return ops.token_pool(weights, x).reshape(-1, self.config.dim)

    def _all(self, block, x):
        """A block on all tokens that there are."""
        if self.config.recompute and self.training:
            return ops.recompute(x, fn=block, rng=self.rng)
        return block(x)

    def _few(self, j, tokenizer, block, x):
        """A block on few tokens: x (B, N, dim) -> (B, T'·S, dim), or (B, N, dim) again where there is a way back."""
        grid = self._to_grid(x)  # (B·T', rows, columns, dim)
        maps = tokenizer.maps(grid) if self.config.back == "unpool" else None
        tokens = tokenizer(grid) if maps is None else tokenizer(grid, maps)  # (B·T', S, dim)
        tokens = self._all(block, tokens.reshape(x.shape[0], -1, self.config.dim))
        if not self.backs:
            return tokens
        return self.backs[j](tokens, grid.reshape(x.shape[0], -1, *grid.shape[1:]), maps).reshape(x.shape)

    def maps(self, images):
        """What each token looks at, over the patch grid: (B, H, W, channels) -> (B, num_tokens, rows, columns).

        For clips (B, T, H, W, channels) -> (B, T', num_tokens, rows, columns). With a way back, the maps of block
        ``loc``. Raises ValueError when the model keeps all its tokens, or makes the few without maps.
        """
        if not self.has_maps:
            raise ValueError(f"this ViT has no maps: its tokenizer is {self.config.tokenizer!r}")
        x = self._embed(images)
        for block in self.blocks[: self.config.loc]:
            x = block(x)
        maps = self.tokenizer.maps(self._to_grid(x))
        return maps if self.config.frames == 1 else maps.reshape(x.shape[0], -1, *maps.shape[1:])

    def _embed(self, images):
        images = images if isinstance(images, Tensor) else Tensor(images)
        config = self.config
        kind, time = ("images", ()) if config.frames == 1 else ("clips", (config.frames,))
        expected = (*time, *config.image_size, config.channels)
        if images.shape[1:] != expected:
            raise ValueError(f"this ViT takes {kind} (B, {', '.join(map(str, expected))}), got {images.shape}")
        dtype = self.head.weight.dtype
        if images.dtype != dtype:
            raise TypeError(f"this ViT computes in {dtype}, the {kind} are {images.dtype}; convert them")
        if config.stem == "conv":
            x = self.patch_embed(images.reshape(-1, *images.shape[-3:]))  # (B·T, rows, columns, dim)
            x = x.reshape(images.shape[0], -1, config.dim)
        else:
            x = self.patch_embed(patchify(images, config.patch_size, config.tubelet))
        return self.drop(x + self.pos_embed)  # (B, N, dim)

    def _to_grid(self, x):
        return x.reshape(-1, *self.config.grid, self.config.dim)  # (B, N, dim) -> (B·T', rows, columns, dim)


def _stem(config, rng):
    if config.stem == "conv":
        return ConvStem(config.channels, config.dim, config.patch_size.bit_length() - 1, config.stem_width, rng)
    return Linear(config.tubelet * config.patch_size**2 * config.channels, config.dim, rng=rng)


def _tokenizer(config, rng):
    learner = {name: getattr(config, name) for name in ("version", "pool", "pre_norm", "hidden", "dropout")}
    options = {"learner": learner, "query": {"num_heads": config.heads}}.get(config.tokenizer, {})
    return make_tokenizer(config.tokenizer, config.dim, config.num_tokens, config.grid, rng=rng, **options)


def _back(config, rng):
    fuser = {"frames": config.time_steps, "hidden": config.hidden, "dropout": config.dropout}
    fuser |= {"mix": config.fuser_mix, "beta": config.fuser_beta, "normalize": config.fuser_norm}
    options = {"fuser": fuser, "reproject": {"num_heads": config.heads}}.get(config.back, {})
    return make_back(config.back, config.dim, config.num_tokens, config.grid, rng=rng, **options)
