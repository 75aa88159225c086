"""The paper's alternatives to TokenLearner and TokenFuser (Tables 5 and 11, Fig. 8), and all of them by name.

A tokenizer maps (B, H, W, C) to few tokens (B, S, C); if its tokens are averages, ``maps`` returns their weights
(B, S, H, W). A way back maps tokens, the grid they came from and their maps to the shape of the grid, which it adds.
"""

from .. import ops
from ..autograd import Tensor
from ..backend import array_module, default_rng
from ..errors import InputError, did_you_mean
from .layers import BatchNorm2d, Conv2d, Linear
from .module import Module, normal
from .tokenlearner import TokenFuser, TokenLearner


def grid_shape(num_tokens, height, width):
    """Return the rows and columns of ``num_tokens`` equal cells that are as near to square as possible.

    Raises InputError if equal cells do not fit height x width pixels.
    """
    fits = [(r, num_tokens // r) for r in range(1, num_tokens + 1) if num_tokens % r == 0]
    fits = [(r, c) for r, c in fits if height % r == 0 and width % c == 0]
    if not fits:
        raise InputError(f"a grid of {height} x {width} pixels cannot be cut into {num_tokens} equal cells")
    return min(fits, key=lambda g: abs(height * g[1] - width * g[0]))


def pixels(x):
    """(B, H, W, C) -> (B, H·W, C), and (B, T, H, W, C) -> (B, T·H·W, C)"""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def expect_grid(x, grid):
    """Raise ValueError unless x is (B, H, W, C) with (H, W) = ``grid``."""
    if x.ndim != 4 or x.shape[1:3] != tuple(grid):
        raise ValueError(f"this tokenizer takes grids of {grid[0]} x {grid[1]}, got {x.shape}")


# --- tokenizers ---


class GridPool(Module):
    """Average over each of ``num_tokens`` equal cells of a fixed grid; nothing is learned.

    The paper's pooling baseline (Table 5), and its fixed split of a video frame (2 x 4 cells for 8 tokens). Raises
    InputError if equal cells do not fit the grid.
    """

    def __init__(self, num_tokens, height, width):
        self.num_tokens, self.grid = num_tokens, (height, width)
        self.rows, self.columns = grid_shape(num_tokens, height, width)
        self.window = height // self.rows, width // self.columns

    def maps(self, x):
        """Return one cell per map, each with sum 1: (B, H, W, C) -> (B, num_tokens, H, W)."""
        h, w = self.window
        cells = array_module(x.data).eye(self.num_tokens, dtype=x.dtype).reshape(-1, self.rows, self.columns)
        return Tensor((cells.repeat(h, 1).repeat(w, 2) / (h * w))[None].repeat(x.shape[0], 0))

    def forward(self, x):
        expect_grid(x, self.grid)
        return ops.avg_pool2d(x, kernel_size=self.window).reshape(x.shape[0], self.num_tokens, x.shape[3])


class StaticPool(Module):
    """Learned maps that do not depend on the input: a softmax over the pixels of (S, H·W) free numbers.

    A control that the paper does not have: TokenLearner without maps that can follow the content.
    """

    def __init__(self, num_tokens, height, width, rng=None):
        self.logits = normal(default_rng(rng), (1, num_tokens, height * width), std=1.0)
        self.grid = height, width

    def maps(self, x):
        """Return the maps, the same for each image: (B, H, W, C) -> (B, num_tokens, H, W)."""
        B, H, W, _ = x.shape
        A = ops.softmax(self.logits, axis=-1).reshape(1, -1, H, W)
        return ops.concatenate(*[A] * B)

    def forward(self, x):
        expect_grid(x, self.grid)
        return ops.token_pool(ops.softmax(self.logits, axis=-1), pixels(x))


class DenseTokenizer(Module):
    """All tokens from one linear layer on all pixels of a ``grid`` (rows, columns), or, if it is None, on their mean.

    The paper's fully connected and average-pooling alternatives for video. No token belongs to a place, so no maps.
    """

    def __init__(self, channels, num_tokens, grid=None, rng=None):
        inputs = channels if grid is None else grid[0] * grid[1] * channels
        self.mean, self.fc = grid is None, Linear(inputs, num_tokens * channels, rng=rng)

    def forward(self, x):
        flat = ops.global_avg_pool(x) if self.mean else x.reshape(x.shape[0], -1)
        return self.fc(flat).reshape(x.shape[0], -1, x.shape[-1])


class SpatialGate(Module):
    """x ⊙ gate, with one weight in (0, 1) per pixel (CBAM; Woo et al., 2018).

    The gate is a 7x7 convolution of the channels' maximum and mean, batch norm, sigmoid. GateTokenizer has several.
    """

    def __init__(self, num_gates=1, rng=None):
        self.conv = Conv2d(2, num_gates, 7, padding=3, bias=False, rng=rng)
        self.norm = BatchNorm2d(num_gates, momentum=0.01)

    def gates(self, x):
        """Return the gates, (B, H, W, C) -> (B, H, W, num_gates)."""
        pooled = ops.concatenate(x.max(axis=-1, keepdims=True), x.mean(axis=-1, keepdims=True), axis=-1)  # (B, H, W, 2)
        return ops.sigmoid(self.norm(self.conv(pooled)))

    def forward(self, x):
        return x * self.gates(x)


class GateTokenizer(Module):
    """TokenLearner with CBAM's gates as maps: each token is the mean over the pixels of one x ⊙ gate."""

    def __init__(self, num_tokens, rng=None):
        self.gate = SpatialGate(num_tokens, rng)

    def maps(self, x):
        """Return the gates as maps: (B, H, W, C) -> (B, num_tokens, H, W)."""
        return self.gate.gates(x).transpose(0, 3, 1, 2)

    def forward(self, x):
        A = pixels(self.gate.gates(x)).transpose(0, 2, 1)  # (B, S, P)
        return ops.token_pool(A, pixels(x), mean=True)


class CrossAttention(Module):
    """Multi-head attention of x (B or 1, N, dim) to a context (B, M, dim) -> (B, N, dim)."""

    def __init__(self, dim, num_heads=8, rng=None):
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide dim={dim}")
        rng = default_rng(rng)
        self.q, self.k, self.v, self.proj = (Linear(dim, dim, rng=rng) for _ in range(4))
        self.num_heads = num_heads

    def weights(self, x, context):
        """Return the softmax of q kᵀ / √d over the context, (B, num_heads, N, M)."""
        q, k = self._heads(self.q(x)), self._heads(self.k(context))
        return ops.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(0, 1, 3, 2))

    def forward(self, x, context):
        y = self.weights(x, context) @ self._heads(self.v(context))
        return self.proj(y.transpose(0, 2, 1, 3).reshape(context.shape[0], *x.shape[1:]))

    def _heads(self, x):  # (B, N, dim) -> (B, heads, N, d)
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)


class QueryTokenizer(Module):
    """Learned queries, one per token, attend to the pixels (as in Scenic's ``token_turing``)."""

    def __init__(self, channels, num_tokens, num_heads=8, rng=None):
        rng = default_rng(rng)
        self.queries = normal(rng, (1, num_tokens, channels), std=0.02)
        self.attn = CrossAttention(channels, num_heads, rng)

    def maps(self, x):
        """Return the attention of each token, averaged over the heads: (B, H, W, C) -> (B, num_tokens, H, W)."""
        B, H, W, _ = x.shape
        return self.attn.weights(self.queries, pixels(x)).mean(axis=1).reshape(B, -1, H, W)

    def forward(self, x):
        return self.attn(self.queries, pixels(x))


# --- ways back ---


class Unpool(Module):
    """X + Aᵀ Y: each token goes back to where it came from, with the weights of its map; nothing is learned.

    Clips, with tokens (B, T·S, C), grid (B, T, H, W, C) and maps (B, T, S, H, W), are unpooled frame by frame. Raises
    InputError if maps is None.
    """

    def forward(self, tokens, grid, maps):
        if maps is None:
            raise InputError("unpooling needs a tokenizer with maps; choose another way back, or another tokenizer")
        *_, S, H, W = maps.shape
        A = maps.reshape(-1, S, H * W).transpose(0, 2, 1)  # (B, P, S)
        return grid + (A @ tokens.reshape(-1, S, tokens.shape[-1])).reshape(grid.shape)


class Reproject(Module):
    """X + attention of all pixels of X to the tokens, in clips to those of all frames; without an MLP."""

    def __init__(self, channels, num_heads=8, rng=None):
        self.attn = CrossAttention(channels, num_heads, rng)

    def forward(self, tokens, grid, maps=None):
        return grid + self.attn(pixels(grid), tokens).reshape(grid.shape)


# --- by name ---

TOKENIZERS = {
    "learner": lambda C, S, grid, rng, **options: TokenLearner(C, S, rng=rng, **options),
    "pool": lambda C, S, grid, rng: GridPool(S, *grid),
    "static": lambda C, S, grid, rng: StaticPool(S, *grid, rng),
    "dense": lambda C, S, grid, rng: DenseTokenizer(C, S, grid, rng),
    "mean-dense": lambda C, S, grid, rng: DenseTokenizer(C, S, None, rng),
    "query": lambda C, S, grid, rng, **options: QueryTokenizer(C, S, rng=rng, **options),
    "gate": lambda C, S, grid, rng: GateTokenizer(S, rng),
    "none": lambda C, S, grid, rng: None,
}
BACKS = {
    "fuser": lambda C, S, grid, rng, **options: TokenFuser(C, S, rng=rng, **options),
    "unpool": lambda C, S, grid, rng: Unpool(),
    "reproject": lambda C, S, grid, rng, **options: Reproject(C, rng=rng, **options),
    "none": lambda C, S, grid, rng: None,
}


def make_tokenizer(name, channels, num_tokens, grid, rng=None, **options):
    """Return the tokenizer ``name`` for a grid of (rows, columns) pixels; None for "none".

    ``options`` are those of its class. Raises InputError for a name that is not in TOKENIZERS.
    """
    if name not in TOKENIZERS:
        raise InputError(f"there is no tokenizer {name!r}; {did_you_mean(name, TOKENIZERS)}")
    return TOKENIZERS[name](channels, num_tokens, grid, rng, **options)


def make_back(name, channels, num_tokens, grid, rng=None, **options):
    """Return the way back ``name``, as ``make_tokenizer`` does. Raises InputError for a name that is not in BACKS."""
    if name not in BACKS:
        raise InputError(f"there is no way back {name!r}; {did_you_mean(name, BACKS)}")
    return BACKS[name](channels, num_tokens, grid, rng, **options)
