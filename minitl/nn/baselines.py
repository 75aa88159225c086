"""What TokenLearner and TokenFuser are compared with (paper, Tables 5 and 11, Fig. 8), and all of them by name.

A tokenizer maps (B, H, W, C) to few tokens (B, S, C); where its tokens are averages, ``maps`` gives their weights
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
    """The grid (rows, columns) of ``num_tokens`` equal cells that is nearest to square cells.

    Raises InputError when no such grid divides the height and the width.
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
        raise ValueError(f"this tokenizer was made for grids of {grid[0]} x {grid[1]}, got {x.shape}")


class GridPool(Module):
    """Average over the cells of a fixed grid. Nothing is learned.

    This is the paper's pooling baseline (Table 5) and its fixed split of a video frame (2 x 4 cells for 8 tokens).
    ``window`` sets the cells' side, or (height, width), in pixels instead of the nearest to square. Raises InputError
    when the cells do not cover the grid exactly.
    """

    def __init__(self, num_tokens, height, width, window=None):
        if window is None:
            rows, columns = grid_shape(num_tokens, height, width)
        else:
            h, w = (window, window) if isinstance(window, int) else window
            rows, columns = height // max(h, 1), width // max(w, 1)
            if (rows * h, columns * w, rows * columns) != (height, width, num_tokens):
                raise InputError(f"windows of {h} x {w} do not cut {height} x {width} pixels into {num_tokens} cells")
        self.num_tokens, self.rows, self.columns = num_tokens, rows, columns
        self.window = height // rows, width // columns

    def maps(self, x):
        """One cell per map: (B, H, W, C) -> (B, num_tokens, H, W), each map adds up to 1."""
        h, w = self.window
        cells = array_module(x.data).eye(self.num_tokens, dtype=x.dtype).reshape(-1, self.rows, self.columns)
        return Tensor((cells.repeat(h, 1).repeat(w, 2) / (h * w))[None].repeat(x.shape[0], 0))

    def forward(self, x):
        expect_grid(x, (self.rows * self.window[0], self.columns * self.window[1]))
        return ops.avg_pool2d(x, kernel_size=self.window).reshape(x.shape[0], self.num_tokens, x.shape[3])


class StaticPool(Module):
    """Learned maps that do not depend on the input: a softmax over the pixels of (S, H·W) free numbers.

    A control that the paper does not have: what is left of TokenLearner when its maps cannot follow the content.
    """

    def __init__(self, num_tokens, height, width, rng=None):
        self.logits = normal(default_rng(rng), (1, num_tokens, height * width), std=1.0)
        self.grid = height, width

    def maps(self, x):
        """The maps, the same for each image: (B, H, W, C) -> (B, num_tokens, H, W)."""
        B, H, W, _ = x.shape
        A = ops.softmax(self.logits, axis=-1).reshape(1, -1, H, W)
        return ops.concatenate(*[A] * B)

    def forward(self, x):
        expect_grid(x, self.grid)
        return ops.token_pool(ops.softmax(self.logits, axis=-1), pixels(x))


class DenseTokenizer(Module):
    """One linear layer makes all tokens, from the flattened ``grid`` of (rows, columns) or without it from the mean.

    The paper's fully connected and average-pooling alternatives for video. No token belongs to a place: no maps.
    """

    def __init__(self, channels, num_tokens, grid=None, rng=None):
        inputs = channels if grid is None else grid[0] * grid[1] * channels
        self.mean, self.fc = grid is None, Linear(inputs, num_tokens * channels, rng=rng)

    def forward(self, x):
        flat = ops.global_avg_pool(x) if self.mean else x.reshape(x.shape[0], -1)
        return self.fc(flat).reshape(x.shape[0], -1, x.shape[-1])


class CrossAttention(Module):
    """Multi-head attention of x (B or 1, N, dim) to a context (B, M, dim) -> (B, N, dim)."""

    def __init__(self, dim, num_heads=8, rng=None):
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide dim={dim}")
        rng = default_rng(rng)
        self.q, self.k, self.v, self.proj = (Linear(dim, dim, rng=rng) for _ in range(4))
        self.num_heads = num_heads

    def weights(self, x, context):
        """Softmax over the context of q kᵀ / √d: (B, num_heads, N, M)."""
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
        """The attention of each token, averaged over the heads: (B, H, W, C) -> (B, num_tokens, H, W)."""
        B, H, W, _ = x.shape
        return self.attn.weights(self.queries, pixels(x)).mean(axis=1).reshape(B, -1, H, W)

    def forward(self, x):
        return self.attn(self.queries, pixels(x))


class ChannelPool(Module):
    """The largest channel and the mean over the channels: (B, H, W, C) -> (B, H, W, 2) (CBAM)."""

    def forward(self, x):
        return ops.concatenate(x.max(axis=-1, keepdims=True), x.mean(axis=-1, keepdims=True), axis=-1)


class SpatialGate(Module):
    """x ⊙ gate, one weight in (0, 1) per pixel from a 7x7 convolution of ChannelPool (CBAM; Woo et al., 2018).

    More gates than one are for GateTokenizer.
    """

    def __init__(self, num_gates=1, rng=None):
        self.pool = ChannelPool()
        self.conv = Conv2d(2, num_gates, 7, padding=3, bias=False, rng=rng)
        self.norm = BatchNorm2d(num_gates, momentum=0.01)

    def gates(self, x):
        """(B, H, W, C) -> (B, H, W, num_gates)"""
        return ops.sigmoid(self.norm(self.conv(self.pool(x))))

    def forward(self, x):
        return x * self.gates(x)


class GateTokenizer(Module):
    """TokenLearner with CBAM's gates as maps: each token is the mean over the pixels of one x ⊙ gate."""

    def __init__(self, num_tokens, rng=None):
        self.gate = SpatialGate(num_tokens, rng)

    def maps(self, x):
        """The gates: (B, H, W, C) -> (B, num_tokens, H, W)."""
        return self.gate.gates(x).transpose(0, 3, 1, 2)

    def forward(self, x):
        A = pixels(self.gate.gates(x)).transpose(0, 2, 1)  # (B, S, P)
        return ops.token_pool(A, pixels(x), mean=True)


class Unpool(Module):
    """X + Aᵀ Y: each token goes back where it came from, with the weights of its map. Nothing is learned.

    Clips, with grid (B, T, H, W, C), tokens (B, T·S, C) and maps (B, T, S, H, W), go frame by frame.
    """

    def forward(self, tokens, grid, maps):
        if maps is None:
            raise InputError("unpooling needs a tokenizer with maps; choose another way back, or another tokenizer")
        *_, S, H, W = maps.shape
        A = maps.reshape(-1, S, H * W).transpose(0, 2, 1)  # (B, P, S)
        return grid + (A @ tokens.reshape(-1, S, tokens.shape[-1])).reshape(grid.shape)


class Reproject(Module):
    """X + attention of all pixels of X to the tokens, without an MLP. Clips: all pixels to the tokens of all frames."""

    def __init__(self, channels, num_heads=8, rng=None):
        self.attn = CrossAttention(channels, num_heads, rng)

    def forward(self, tokens, grid, maps=None):
        return grid + self.attn(pixels(grid), tokens).reshape(grid.shape)


TOKENIZERS = {
    "learner": lambda C, S, grid, **options: TokenLearner(C, S, **options),
    "pool": lambda C, S, grid, rng, **options: GridPool(S, *grid, **options),
    "static": lambda C, S, grid, **options: StaticPool(S, *grid, **options),
    "dense": lambda C, S, grid, **options: DenseTokenizer(C, S, grid, **options),
    "mean-dense": lambda C, S, grid, **options: DenseTokenizer(C, S, **options),
    "query": lambda C, S, grid, **options: QueryTokenizer(C, S, **options),
    "gate": lambda C, S, grid, **options: GateTokenizer(S, **options),
    "none": lambda C, S, grid, **options: None,
}
BACKS = {
    "fuser": lambda C, S, grid, **options: TokenFuser(C, S, **options),
    "unpool": lambda C, S, grid, rng, **options: Unpool(**options),
    "reproject": lambda C, S, grid, **options: Reproject(C, **options),
    "none": lambda C, S, grid, **options: None,
}


def make_tokenizer(name, channels, num_tokens, grid, rng=None, **options):
    """The tokenizer called ``name`` for a grid of (rows, columns) pixels, ``None`` for "none".

    ``options`` are its class's own. Raises InputError for a name that is not in TOKENIZERS.
    """
    return _find(TOKENIZERS, "tokenizer", name)(channels, num_tokens, grid, rng=rng, **options)


def make_back(name, channels, num_tokens, grid, rng=None, **options):
    """The way back called ``name``, as in ``make_tokenizer``. Raises InputError for a name that is not in BACKS."""
    return _find(BACKS, "way back", name)(channels, num_tokens, grid, rng=rng, **options)


def _find(table, kind, name):
    if name not in table:
        raise InputError(f"there is no {kind} {name!r}; {did_you_mean(name, table)}")
    return table[name]
