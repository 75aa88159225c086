"""A Vision Transformer for images and clips that reduces its tokens to a few (paper, sections 3 and 4.1).

It does so either once, before block ``loc``, or around that block and each later one, with a way back: TokenLearner,
block, TokenFuser, which restores all tokens.
"""

import itertools
import math
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
from .reduce import REDUCTIONS, Reduction, expect_fewer
from .transformer import EncoderBlock


@dataclass(frozen=True)
class ViTConfig:
    """Options of a ViT."""

    tubelet: int = 1
    """frames per token; must divide the number of frames"""
    patch_size: int = 4
    """side of a patch in pixels; must divide both sides of the images"""
    stem: Literal["patch", "conv"] = "patch"
    """how pixels become tokens: a linear layer on each patch, or convolutions that each halve the image"""
    stem_width: int = 64
    """channels between the convolutions of the stem conv"""
    dim: int = 48
    """width of a token"""
    layers: int = 2
    """number of encoder blocks"""
    heads: int = 3
    """attention heads; must divide dim"""
    mlp_dim: int = 96
    """hidden width of a block's MLP"""
    positions: Literal["random", "waves"] = "random"
    """initial position embeddings: small random numbers, or waves over time, rows and columns"""
    head_pool: Literal["mean", "sequence"] = "mean"
    """input of the head: the mean of the tokens, or their average with learned weights (sequence pooling)"""
    zero_head: bool = True
    """initialize the head to zero, so all classes start equally likely"""
    tokenizer: Literal["learner", "pool", "static", "dense", "mean-dense", "query", "gate", "merge", "topk", "none"] = (
        "learner"
    )
    """TokenLearner, grid means, static maps, a linear layer on all patches or their mean, queries, gates, or none;
    or in the middle of block ``loc``, which attends to all tokens, ToMe (merge) or EViT (topk)"""
    num_tokens: int = 8
    """tokens that the tokenizer makes from an image, or from each tubelet"""
    loc: int = 0
    """index of the first block that sees only these tokens, 0 <= loc < layers"""
    back: Literal["none", "fuser", "unpool", "reproject"] = "none"
    """how to restore all tokens after each block from loc on, which then have their own tokenizers"""
    version: Literal["1.0", "1.1"] = "1.0"
    """version of TokenLearner: 1.0 with convolutions and sigmoid, or 1.1 with an MLP and softmax"""
    pool: Literal["mean", "sum"] = "mean"
    """pooling of version 1.0: the paper's mean or Scenic's sum"""
    pre_norm: bool = True
    """LayerNorm before the layers that make the maps, as in Scenic"""
    hidden: int = 64
    """hidden width of the MLPs of version 1.1 and of the fuser"""
    fuser_mix: Literal["all", "frame"] = "all"
    """TokenFuser mixes the tokens of the whole clip, as in the paper, or of each frame, as in Scenic"""
    fuser_beta: Literal["linear", "mlp"] = "linear"
    """TokenFuser's weights at each pixel: the paper's linear layer or Scenic's MLP"""
    fuser_norm: bool = True
    """LayerNorm before and after TokenFuser's mixing matrix, as in Scenic"""
    dropout: float = 0.0
    """drop probability after embedding, attention and MLP layers, and of attention weights"""
    drop_path: float = 0.0
    """probability of skipping a branch of the last block; it grows linearly from 0 at the first block"""
    recompute: bool = False
    """keep only the input of each block and compute the block again in backward: less memory, more time"""

    def __post_init__(self):
        """Raise InputError for values that no data set can fit."""
        check_types(self)
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is int and name != "loc" and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
            if field.type is float and not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), got {value}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise InputError(f"stem='conv' needs a patch_size of 2, 4, 8 …, got {self.patch_size}")
        if self.stem == "conv" and self.tubelet > 1:
            raise InputError(f"stem='conv' sees one frame at a time: tubelet must be 1, got {self.tubelet}")
        if self.dim % self.heads:
            raise InputError(f"heads={self.heads} does not divide dim={self.dim}")
        if not 0 <= self.loc < self.layers:
            raise InputError(f"loc={self.loc} is not the index of a block: 0 <= loc < layers={self.layers}")
        if self.back != "none" and self.tokenizer == "none":
            raise InputError(f"back={self.back!r} needs a tokenizer: with tokenizer='none' all tokens stay")
        if self.back == "unpool" and self.tokenizer != "learner":
            raise InputError(f"back='unpool' needs the maps of tokenizer='learner', not of {self.tokenizer!r}")
        if self.tokenizer in REDUCTIONS and (self.back != "none" or self.recompute):
            raise InputError(f"tokenizer={self.tokenizer!r} works inside a block; it takes neither back nor recompute")

    def grid(self, spec):
        """Return the grid of tokens (T', rows, columns) for the images or clips of a DataSpec; T' is 1 for images.

        Raises InputError if patches, tubelets or the cells of grid pooling do not divide them.
        """
        H, W = spec.image_size
        if H % self.patch_size or W % self.patch_size:
            fit = [n for n in range(2, min(H, W) + 1) if not (H % n or W % n)]
            hint = f"choose one of {', '.join(map(str, fit))}" if fit else "resize the images"
            raise InputError(f"patch_size={self.patch_size} does not divide the image size {H} x {W}; {hint}")
        if spec.frames % self.tubelet:
            raise InputError(f"tubelet={self.tubelet} does not divide frames={spec.frames}")
        rows, columns = H // self.patch_size, W // self.patch_size
        if self.tokenizer == "pool":
            grid_shape(self.num_tokens, rows, columns)  # raises InputError
        elif self.tokenizer in REDUCTIONS:
            expect_fewer(self.tokenizer, self.num_tokens, rows * columns)
        return spec.frames // self.tubelet, rows, columns


def patchify(x, size, tubelet=1):
    """Cut images (B, H, W, C) or clips (B, T, H, W, C) into patches (B, N, tubelet·size·size·C).

    N = (T / tubelet)(H / size)(W / size), ordered by time, then by row, then by column.
    """
    B, *_, H, W, C = x.shape
    x = x.reshape(B, -1, tubelet, H // size, size, W // size, size, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, tubelet * size * size * C)


def waves(rng, sides, dim, std=0.3):
    """Position embeddings (1, N, dim) of a grid with these sides: random mixtures of three waves along each axis.

    Neighbors start out similar, but different enough to be told apart from the first step on.
    """
    positions = np.zeros((*sides, dim))
    for axis, n in enumerate(sides):
        phase = np.pi * (np.arange(n)[:, None] + 0.5) / n * (1, 2, 4)
        code = np.concatenate([np.sin(phase), np.cos(phase)], 1) @ rng.standard_normal((6, dim))
        positions += np.expand_dims(std / code.std() * code, [i for i in range(len(sides)) if i != axis])
    return Parameter(positions.reshape(1, -1, dim).astype(np.float32))


def inflate(state, config, spec, how="central"):
    """Turn the ``state_dict`` of an image ViT into initial weights for the clip ViT of ``config`` and ``spec``.

    A tubelet's embedding sees only its middle frame (``how="central"``) or the mean of its frames (``"average"``);
    position embeddings are repeated along time (ViViT, section 3.4). A clip that repeats one image then has the logits
    of that image, if nothing else depends on time. ``state`` is not modified. Raises InputError for another ``how``.
    """
    if how not in ("central", "average"):
        raise InputError(f"how must be central or average, got {how!r}")
    T, *_ = config.grid(spec)
    state = state | {"pos_embed": array_module(state["pos_embed"]).concatenate([state["pos_embed"]] * T, 1)}
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
    """n 3x3 convolutions, each with max pooling to half the size and ReLU: (B, H, W, C) -> (B, H / 2ⁿ, W / 2ⁿ, dim).

    This is the tokenizer of the Compact Convolutional Transformer (Hassani et al., 2021), with ``width`` channels in
    between. There ReLU comes before pooling, which gives the same numbers for more work.
    """

    def __init__(self, channels, dim, n, width=64, rng=None):
        widths = [channels, *[width] * (n - 1), dim]
        self.convs = [Conv2d(i, o, 3, padding=1, bias=False, rng=rng) for i, o in itertools.pairwise(widths)]

    def forward(self, x):
        for conv in self.convs:
            x = ops.relu(ops.max_pool2d(conv(x), kernel_size=3, stride=2, padding=1))
        return x


class ViT(Module):
    """Map images (B, H, W, C) or clips (B, T, H, W, C), normalized floats, to logits (B, num_classes).

    ``config`` is a ViTConfig, ``spec`` the DataSpec of the images or clips. A linear layer embeds patches or tubelets,
    or a convolutional stem embeds images, and a learned position is added. The blocks attend jointly over space and
    time, with the tokenizer before block ``loc``; the head reads an average of the remaining tokens. There is no class
    token. The tokenizer makes ``num_tokens`` tokens from each of the T' = T / tubelet grids. With a way back, each
    block from ``loc`` on has its own tokenizer and its own way back. Raises InputError if ``config`` does not fit
    ``spec``.
    """

    def __init__(self, config, spec, rng=None):
        rng = default_rng(rng)
        self.config, self.spec, self.rng = config, spec, rng
        self.grid = config.grid(spec)  # (T', rows, columns)
        self.patch_embed = _stem(config, spec, rng)
        if config.positions == "random":
            self.pos_embed = normal(rng, (1, math.prod(self.grid), config.dim), std=0.02)
        else:
            self.pos_embed = waves(rng, self.grid, config.dim)
        self.drop = Dropout(config.dropout, rng)
        repeats = 1 if config.back == "none" else config.layers - config.loc
        self.tokenizer, *self.later_tokenizers = [_tokenizer(config, self.grid[1:], rng) for _ in range(repeats)]
        skips = [config.drop_path * i / max(config.layers - 1, 1) for i in range(config.layers)]
        sizes, drops = (config.dim, config.heads, config.mlp_dim), (config.dropout, config.dropout)
        self.blocks = [EncoderBlock(*sizes, *drops, skip, rng) for skip in skips]
        self.backs = [back for _ in range(repeats) if (back := _back(config, self.grid, rng))]
        self.norm = LayerNorm(config.dim)
        if config.head_pool == "sequence":  # starts as the mean; a bias would change nothing
            self.head_weights = Linear(config.dim, 1, bias=False, rng=rng)
            self.head_weights.weight = constant(0, config.dim, 1)
        self.head = Linear(config.dim, spec.num_classes, rng=rng)
        if config.zero_head:
            self.head.weight = constant(0, config.dim, spec.num_classes)

    @property
    def has_maps(self):
        """True if the tokens come from maps, which ``maps`` returns."""
        return hasattr(self.tokenizer, "maps")

    def forward(self, images):
        x = self._embed(images)
        x = self.tokenizer(x, self.blocks) if isinstance(self.tokenizer, Reduction) else self._run(x)
        return self.head(self._average(self.norm(x)))

    def _run(self, x):
        """Apply the blocks, and before or around them the tokenizers and ways back."""
        tokenizers = [self.tokenizer, *self.later_tokenizers] if self.tokenizer else []
        for i, block in enumerate(self.blocks):
            j = i - self.config.loc
            x = self._reduced(j, tokenizers[j], block, x) if 0 <= j < len(tokenizers) else self._apply(block, x)
        return x

    def _average(self, x):
        """Average the tokens: (B, N, dim) -> (B, dim)."""
        if self.config.head_pool == "mean":
            return x.mean(axis=1)
        weights = ops.softmax(self.head_weights(x).transpose(0, 2, 1), axis=-1)  # (B, 1, N)
        return ops.token_pool(weights, x).reshape(-1, self.config.dim)

    def _apply(self, block, x):
        """Apply a block to the tokens x, keeping only x for the backward pass if so configured."""
        if self.config.recompute and self.training:
            return ops.recompute(x, fn=block, rng=self.rng)
        return block(x)

    def _reduced(self, j, tokenizer, block, x):
        """Apply a block to few tokens: x (B, N, dim) -> (B, T'·S, dim), or with a way back -> (B, N, dim)."""
        grid = self._to_grid(x)  # (B·T', rows, columns, dim)
        maps = tokenizer.maps(grid) if self.config.back == "unpool" else None
        tokens = tokenizer(grid) if maps is None else tokenizer(grid, maps)  # (B·T', S, dim)
        tokens = self._apply(block, tokens.reshape(x.shape[0], -1, self.config.dim))
        if not self.backs:
            return tokens
        return self.backs[j](tokens, grid.reshape(x.shape[0], -1, *grid.shape[1:]), maps).reshape(x.shape)

    def maps(self, images):
        """Return each token's weights over the patch grid: (B, H, W, C) -> (B, num_tokens, rows, columns).

        For clips (B, T, H, W, C) -> (B, T', num_tokens, rows, columns). With a way back, the maps are those of block
        ``loc``. Raises ValueError if the tokens do not come from maps.
        """
        if not self.has_maps:
            raise ValueError(f"this ViT has no maps: its tokenizer is {self.config.tokenizer!r}")
        x = self._embed(images)
        if isinstance(self.tokenizer, Reduction):
            maps = self.tokenizer.maps(x, self.blocks)
        else:
            for block in self.blocks[: self.config.loc]:
                x = block(x)
            maps = self.tokenizer.maps(self._to_grid(x))
        return maps if self.spec.frames == 1 else maps.reshape(x.shape[0], -1, *maps.shape[1:])

    def _embed(self, images):
        images = images if isinstance(images, Tensor) else Tensor(images)
        config, spec = self.config, self.spec
        kind, time = ("images", ()) if spec.frames == 1 else ("clips", (spec.frames,))
        expected = (*time, *spec.image_size, spec.channels)
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
        return x.reshape(-1, *self.grid[1:], self.config.dim)  # (B, N, dim) -> (B·T', rows, columns, dim)


def _stem(config, spec, rng):
    if config.stem == "conv":
        return ConvStem(spec.channels, config.dim, config.patch_size.bit_length() - 1, config.stem_width, rng)
    return Linear(config.tubelet * config.patch_size**2 * spec.channels, config.dim, rng=rng)


def _tokenizer(config, grid, rng):
    if config.tokenizer in REDUCTIONS:
        return Reduction(config.tokenizer, config.num_tokens, grid, config.loc)
    learner = {name: getattr(config, name) for name in ("version", "pool", "pre_norm", "hidden", "dropout")}
    options = {"learner": learner, "query": {"num_heads": config.heads}}.get(config.tokenizer, {})
    return make_tokenizer(config.tokenizer, config.dim, config.num_tokens, grid, rng=rng, **options)


def _back(config, grid, rng):
    fuser = {"frames": grid[0], "hidden": config.hidden, "dropout": config.dropout}
    fuser |= {"mix": config.fuser_mix, "beta": config.fuser_beta, "normalize": config.fuser_norm}
    options = {"fuser": fuser, "reproject": {"num_heads": config.heads}}.get(config.back, {})
    return make_back(config.back, config.dim, config.num_tokens, grid[1:], rng=rng, **options)
