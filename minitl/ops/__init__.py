"""The ops: each a formula, its value and its pullback. Read ``basic`` first, the others in any order."""

from .activations import gelu, log_softmax, relu, sigmoid, softmax, tanh
from .attention import attention
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
from .linear import linear, token_pool
from .losses import binary_cross_entropy_with_logits, cross_entropy
from .noise import drop_path, dropout
from .norm import batch_norm, layer_norm

__all__ = [
    "add",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "div",
    "drop_path",
    "dropout",
    "exp",
    "gelu",
    "getitem",
    "global_avg_pool",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "mul",
    "neg",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "token_pool",
    "transpose",
    "where",
]
