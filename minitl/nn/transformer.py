"""The encoder block of a ViT: x += attention(norm(x)), then x += MLP(norm(x)) (paper, section 4.1)."""

from .. import ops
from ..backend import default_rng
from .layers import Dropout, DropPath, LayerNorm, Linear
from .module import Module, normal


class Attention(Module):
    """Multi-head self-attention, (B, N, dim) -> (B, N, dim); ``num_heads`` must divide ``dim``."""

    def __init__(self, dim, num_heads, dropout=0.0, rng=None):
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        rng = default_rng(rng)
        self.qkv = Linear(dim, 3 * dim, parts=3, rng=rng)
        self.proj = Linear(dim, dim, rng=rng)
        self.num_heads, self.dropout, self.rng = num_heads, dropout, rng

    def forward(self, x):
        return self.proj(self.heads(x))

    def heads(self, x):
        """Return the concatenated outputs of the heads, (B, N, dim): the input of ``proj``."""
        p = self.dropout if self.training else 0.0
        qkv = ops.linear(x, self.qkv.weight)  # ops.attention adds the bias
        return ops.attention(qkv, self.qkv.bias, num_heads=self.num_heads, dropout=p, rng=self.rng)


class MLP(Module):
    """(..., dim) -> (..., out): linear, GELU, linear, with dropout after each linear layer."""

    def __init__(self, dim, hidden, out=None, dropout=0.0, rng=None):
        rng = default_rng(rng)
        self.fc1, self.fc2 = Linear(dim, hidden, rng=rng), Linear(hidden, out or dim, rng=rng)
        for layer in (self.fc1, self.fc2):  # the initial bias of Scenic, the authors' code
            layer.bias = normal(rng, layer.bias.shape, std=1e-6)
        self.drop = Dropout(dropout, rng)

    def forward(self, x):
        return self.drop(self.fc2(self.hidden(x)))

    def hidden(self, x):
        """Return the activations of the hidden units, (..., hidden)."""
        return self.drop(ops.linear_gelu(x, self.fc1.weight, self.fc1.bias))


class EncoderBlock(Module):
    """Pre-norm transformer block, (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim, num_heads, mlp_dim, dropout=0.0, attention_dropout=0.0, drop_path=0.0, rng=None):
        rng = default_rng(rng)
        self.norm1, self.attn = LayerNorm(dim), Attention(dim, num_heads, attention_dropout, rng)
        self.norm2, self.mlp = LayerNorm(dim), MLP(dim, mlp_dim, dropout=dropout, rng=rng)
        self.drop, self.drop_path = Dropout(dropout, rng), DropPath(drop_path, rng)

    def forward(self, x):
        x = self.residual(x, self.attn.heads(self.norm1(x)), self.attn.proj)
        return self.residual(x, self.mlp.hidden(self.norm2(x)), self.mlp.fc2)

    def residual(self, x, y, last):
        """Return x + drop_path(drop(last(y))); ``ops.residual`` adds the bias of the layer ``last`` if it can."""
        if self.training and self.drop.p:
            y, b = self.drop(last(y)), None
        else:
            y, b = ops.linear(y, last.weight), last.bias
        return ops.residual(x, y, b, p=self.drop_path.p if self.training else 0.0, rng=self.drop_path.rng)
