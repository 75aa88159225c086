"""A Vision Transformer whose tokens may be reduced to a few at one place (paper, sections 3 and 4.1)."""

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from ..autograd import Tensor
from ..backend import InputError, default_rng
from .layers import Dropout, LayerNorm, Linear
from .module import Module, constant, normal
from .tokenizers import GridPool, StaticPool, grid_shape
from .tokenlearner import TokenLearner
from .transformer import EncoderBlock


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT, checked when it is made. Raises InputError for what cannot be built."""

    image_size: tuple[int, int] = (32, 32)
    """height and width of the images in pixels"""
    channels: int = 3
    """colour channels of the images"""
    num_classes: int = 8
    """outputs of the head"""
    patch_size: int = 4
    """side of a patch in pixels; divides both image sides"""
    dim: int = 48
    """width of a token"""
    layers: int = 2
    """number of encoder blocks"""
    heads: int = 3
    """attention heads; divides dim"""
    mlp_dim: int = 96
    """hidden width of a block's MLP"""
    tokenizer: Literal["learner", "pool", "static", "none"] = "learner"
    """TokenLearner, average over a grid, learned maps that ignore the input, or all tokens kept"""
    num_tokens: int = 8
    """tokens that the tokenizer leaves"""
    loc: int = 0
    """index of the first block that sees the few tokens, 0 <= loc < layers"""
    version: Literal["1.0", "1.1"] = "1.0"
    """TokenLearner's version: convolutions and sigmoid, or MLP and softmax"""
    pool: Literal["mean", "sum"] = "mean"
    """how version 1.0 pools: the paper's mean or Scenic's sum"""
    pre_norm: bool = True
    """LayerNorm before the layers that make the maps, as in Scenic"""
    hidden: int = 64
    """hidden width of version 1.1's MLP"""
    dropout: float = 0.0
    """drop probability after embedding, attention and MLP layers, and of attention weights"""
    drop_path: float = 0.0
    """probability of skipping a whole block's branch, growing linearly from 0 to this at the last block"""

    def __post_init__(self):
        for field in fields(self):
            name, value, choices = field.name, getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, got {value!r}")
            if field.type is int and name != "loc" and value < 1:
                raise InputError(f"{name} is at least 1, got {value}")
            if field.type is float and not 0 <= value < 1:
                raise InputError(f"{name} lies in [0, 1), got {value}")
        height, width = self.image_size
        if min(height, width) < 1 or height % self.patch_size or width % self.patch_size:
            raise InputError(f"patch_size={self.patch_size} does not divide the image size {height} x {width}")
        if self.dim % self.heads:
            raise InputError(f"heads={self.heads} does not divide dim={self.dim}")
        if not 0 <= self.loc < self.layers:
            raise InputError(f"loc={self.loc} is not the index of a block: 0 <= loc < layers={self.layers}")
        if self.tokenizer == "pool":
            grid_shape(self.num_tokens, *self.grid)

    @property
    def grid(self):
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


def patchify(images, size):
    """Cut images (B, H, W, C) into patches (B, N, size·size·C), row by row; N = (H / size)(W / size)."""
    B, H, W, C = images.shape
    x = images.reshape(B, H // size, size, W // size, size, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


class ViT(Module):
    """Images (B, H, W, channels), float and normalised, to logits (B, num_classes).

    Patches are embedded linearly and get a learned position; then come the blocks, with the tokenizer in front of
    block ``loc``; the head reads the mean over the tokens that are left. There is no class token.
    """

    def __init__(self, config, rng=None):
        rng = default_rng(rng)
        self.config = config
        height, width = config.grid
        self.patch_embed = Linear(config.patch_size**2 * config.channels, config.dim, rng=rng)
        self.pos_embed = normal(rng, (1, height * width, config.dim), std=0.02)
        self.drop = Dropout(config.dropout, rng)
        self.tokenizer = _tokenizer(config, rng)
        self.blocks = [
            EncoderBlock(
                config.dim,
                config.heads,
                config.mlp_dim,
                dropout=config.dropout,
                attention_dropout=config.dropout,
                drop_path=config.drop_path * i / max(config.layers - 1, 1),
                rng=rng,
            )
            for i in range(config.layers)
        ]
        self.norm = LayerNorm(config.dim)
        self.head = Linear(config.dim, config.num_classes, rng=rng)
        self.head.weight = constant(0, config.dim, config.num_classes)  # so that training starts at equal odds

    def forward(self, images):
        x = self._embed(images)
        for i, block in enumerate(self.blocks):
            if i == self.config.loc and self.tokenizer is not None:
                x = self.tokenizer(self._to_grid(x))
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))

    def maps(self, images):
        """What each token looks at: (B, H, W, channels) -> (B, num_tokens, rows, columns) over the patch grid.

        Raises ValueError when the model keeps all its tokens.
        """
        if self.tokenizer is None:
            raise ValueError("this ViT has no tokenizer, so it has no maps")
        x = self._embed(images)
        for block in self.blocks[: self.config.loc]:
            x = block(x)
        return self.tokenizer.maps(self._to_grid(x))

    def _embed(self, images):
        images = images if isinstance(images, Tensor) else Tensor(images)
        expected = (*self.config.image_size, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"this ViT takes images (B, {', '.join(map(str, expected))}), got {images.shape}")
        if images.dtype != self.head.weight.dtype:
            raise TypeError(
                f"this ViT computes in {self.head.weight.dtype}, the images are {images.dtype}; convert them"
            )
        x = self.patch_embed(patchify(images, self.config.patch_size))  # (B, N, dim)
        return self.drop(x + self.pos_embed)

    def _to_grid(self, x):
        return x.reshape(x.shape[0], *self.config.grid, self.config.dim)  # (B, N, dim) -> (B, rows, columns, dim)


def _tokenizer(config, rng):
    size = (config.num_tokens, *config.grid)
    if config.tokenizer == "pool":
        return GridPool(*size)
    if config.tokenizer == "static":
        return StaticPool(*size, rng=rng)
    if config.tokenizer == "none":
        return None
    options = {name: getattr(config, name) for name in ("version", "pool", "pre_norm", "hidden", "dropout")}
    return TokenLearner(config.dim, config.num_tokens, **options, rng=rng)
