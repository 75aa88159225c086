"""ToMe and EViT: fewer tokens by rules that have no weights and so need no training.

Both work inside a block, between its attention, which decides, and its MLP. Each token n goes to one token t_n of the S
that are left, and each of these is the weighted mean of all that went to it:

    Z = A x,  A_sn = w_n [t_n = s] / Σ_m w_m [t_m = s]

- "merge", ToMe (Bolya et al., ICLR 2023): the most similar pairs of tokens are merged, w = 1. In later blocks log n is
  added to the logits of a token that stands for n.
- "topk", EViT (Liang et al., ICLR 2022): the S - 1 tokens that receive most attention stay, and all others become one,
  with w = the attention received. EViT takes that of the class token, and does not divide these weights by their sum.

The choice of t has no gradient. The weights of a ViT that keeps all tokens fit one that reduces them in this way.
"""

import math

from .. import ops
from ..autograd import Tensor
from ..backend import array_module
from ..errors import InputError
from .module import Module

REDUCTIONS = ("merge", "topk")


class Reduction(Module):
    """Apply the blocks of a ViT, of which block ``loc`` leaves S of P tokens per frame: (B, T·P, C) -> (B, T·S, C).

    ``rule`` is one of REDUCTIONS, S is ``num_tokens``, and P the number of pixels of ``grid`` (rows, columns).
    """

    def __init__(self, rule, num_tokens, grid, loc):
        self.rule, self.num_tokens, self.grid, self.loc = rule, num_tokens, grid, loc

    def forward(self, x, blocks):
        B, _, C = x.shape
        x, A = self._attend(x, blocks)
        x = _mlp(blocks[self.loc], ops.token_pool(A, x.reshape(-1, A.shape[2], C)).reshape(B, -1, C))
        sizes = (A.data > 0).sum(2).reshape(B, -1)
        for block in blocks[self.loc + 1 :]:
            x = _mlp(block, attend(block, x, sizes)[0]) if self.rule == "merge" else block(x)
        return x

    def maps(self, x, blocks):
        """Return A as maps: (B, T·P, C) -> (B·T, num_tokens, rows, columns)."""
        return self._attend(x, blocks)[1].reshape(-1, self.num_tokens, *self.grid)

    def _attend(self, x, blocks):
        """Return x after the attention of block ``loc``, and A (B·T, S, P)."""
        for block in blocks[: self.loc]:
            x = block(x)
        x, weights, keys = attend(blocks[self.loc], x)
        xp, P, S = array_module(x.data), math.prod(self.grid), self.num_tokens
        received = weights.mean(axis=(1, 2)).reshape(-1, P)  # by each token, from all queries in all heads
        if self.rule == "merge":
            t, w = pairs(keys.mean(axis=1).data.reshape(-1, P, keys.shape[3]), S), Tensor(xp.ones_like(received.data))
        else:
            t, w = xp.minimum(ranks(received.data), S - 1), received + 1e-12  # attention may round to zero
        chosen = Tensor((t[:, None] == xp.arange(S)[:, None]).astype(w.dtype))  # (B·T, S, P)
        A = w.reshape(-1, 1, P) * chosen
        return x, A / A.sum(axis=2, keepdims=True)


def pairs(k, S):
    """Return t (B, P) of ToMe for keys (B, P, d): each even token may join the odd one of the largest cosine."""
    xp, (B, P, _) = array_module(k), k.shape
    k = k / (k * k).sum(2, keepdims=True) ** 0.5
    cosine = (Tensor(k[:, ::2]) @ Tensor(k[:, 1::2].swapaxes(1, 2))).data
    rank, merged, kept = ranks(cosine.max(2)), P - S, S - P // 2  # numbers of even tokens
    t = xp.empty((B, P), int)
    t[:, ::2] = xp.where(rank < merged, kept + cosine.argmax(2), rank - merged)
    t[:, 1::2] = kept + xp.arange(P // 2)
    return t


def ranks(x):
    """Return the rank of each number in its row of x (B, N): 0 for the largest, and the first of equal ones first."""
    i = array_module(x).arange(x.shape[1])
    a, b = x[:, :, None], x[:, None]
    return ((b > a) | ((b == a) & (i < i[:, None]))).sum(2)


def attend(block, x, sizes=None):
    """Return x after the attention of a block, the weights (B, heads, N, N) and the keys (B, heads, N, d)."""
    (B, N, C), attn = x.shape, block.attn
    qkv = attn.qkv(block.norm1(x)).reshape(B, N, 3, attn.num_heads, -1).transpose(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    logits = (q * q.shape[3] ** -0.5) @ k.transpose(0, 1, 3, 2)
    if sizes is not None:
        logits = logits + Tensor(array_module(sizes).log(sizes.astype(x.dtype))[:, None, None])
    A = ops.softmax(logits)
    y = ops.dropout(A, p=attn.dropout, rng=attn.rng) @ v if block.training and attn.dropout else A @ v
    return block.residual(x, y.transpose(0, 2, 1, 3).reshape(B, N, C), attn.proj), A, k


def _mlp(block, x):
    return block.residual(x, block.mlp.hidden(block.norm2(x)), block.mlp.fc2)


def expect_fewer(rule, num_tokens, P):
    """Raise InputError if the rule cannot leave ``num_tokens`` of P tokens."""
    least = (P + 1) // 2 if rule == "merge" else 1
    if not least <= num_tokens < P:
        hint = "; each merges with at most one other, so take topk for fewer" if num_tokens < least else ""
        raise InputError(
            f"tokenizer={rule!r} leaves {least} to {P - 1} of {P} tokens, got num_tokens={num_tokens}{hint}"
        )
