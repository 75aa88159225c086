"""minitl: TokenLearner on NumPy and CuPy, with handwritten autograd."""

__version__ = "0.2.0"

from . import data, nn, ops, optim
from .autograd import OPS, Tensor, no_grad, plain
from .backend import seed
from .fast import cpu as _  # from now on ops have their CPU forms
from .gradcheck import check_gradients, check_module
from .ops.basic import tensor
from .plug import plug

__all__ = [
    "OPS",
    "Tensor",
    "check_gradients",
    "check_module",
    "data",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "plain",
    "plug",
    "seed",
    "tensor",
]
