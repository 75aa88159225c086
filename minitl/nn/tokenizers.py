"""Ways to few tokens that TokenLearner is compared with (paper, section 4). All map (B, H, W, C) to (B, S, C)."""

from .. import ops
from ..autograd import Tensor
from ..backend import InputError, array_module, default_rng
from .module import Module, normal


def grid_shape(num_tokens, height, width):
    """The grid (rows, columns) of ``num_tokens`` equal cells that is nearest to square cells.

    Raises InputError when no such grid divides the height and the width.
    """
    fits = [(r, num_tokens // r) for r in range(1, num_tokens + 1) if num_tokens % r == 0]
    fits = [(r, c) for r, c in fits if height % r == 0 and width % c == 0]
    if not fits:
        raise InputError(f"a grid of {height} x {width} pixels cannot be cut into {num_tokens} equal cells")
    return min(fits, key=lambda g: abs(height * g[1] - width * g[0]))


class GridPool(Module):
    """Average over the cells of a fixed grid (the paper's pooling baseline, Table 5). Nothing is learned."""

    def __init__(self, num_tokens, height, width):
        self.num_tokens, (self.rows, self.columns) = num_tokens, grid_shape(num_tokens, height, width)

    def maps(self, x):
        """One cell per map: (B, H, W, C) -> (B, num_tokens, H, W), each map adds up to 1."""
        B, H, W, _ = x.shape
        h, w = H // self.rows, W // self.columns
        cells = array_module(x.data).eye(self.num_tokens, dtype=x.dtype).reshape(-1, self.rows, self.columns)
        return Tensor((cells.repeat(h, 1).repeat(w, 2) / (h * w))[None].repeat(B, 0))

    def forward(self, x):
        B, H, W, C = x.shape
        cells = ops.avg_pool2d(x, kernel_size=(H // self.rows, W // self.columns))
        return cells.reshape(B, self.num_tokens, C)


class StaticPool(Module):
    """Learned maps that do not depend on the input: a softmax over the pixels of (S, H·W) free numbers.

    A control that the paper does not have: what is left of TokenLearner when its maps cannot follow the content.
    """

    def __init__(self, num_tokens, height, width, rng=None):
        self.logits = normal(default_rng(rng), (1, num_tokens, height * width), std=1.0)

    def maps(self, x):
        """The maps, the same for each image: (B, H, W, C) -> (B, num_tokens, H, W)."""
        B, H, W, _ = x.shape
        A = ops.softmax(self.logits, axis=-1).reshape(1, -1, H, W)
        return ops.concatenate(*[A] * B)

    def forward(self, x):
        B, H, W, C = x.shape
        return ops.token_pool(ops.softmax(self.logits, axis=-1), x.reshape(B, H * W, C))
