"""The ops: each a formula, its value and its pullback. Read ``basic`` first, the others in any order."""

from ..autograd import OPS
from .activations import gelu, log_softmax, relu, sigmoid, softmax, tanh
from .attention import attention, vector_attention
from .basic import (
    add,
    concatenate,
    div,
    exp,
    getitem,
    log,
    matmul,
    max,
    maximum,
    mean,
    mul,
    neg,
    power,
    reshape,
    sqrt,
    sub,
    sum,
    transpose,
    where,
)
from .conv import avg_pool2d, conv2d, global_avg_pool, max_pool2d
from .linear import linear, linear_gelu, token_pool
from .losses import binary_cross_entropy_with_logits, cross_entropy
from .noise import drop_path, dropout, residual
from .norm import batch_norm, layer_norm
from .recompute import recompute

__all__ = list(OPS)
