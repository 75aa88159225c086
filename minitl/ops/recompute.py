"""Memory traded for time: a part of a model runs without being recorded, and once more in the backward pass."""

from ..autograd import Tensor, no_grad, op
from ..backend import default_rng


@op
def recompute(x, *, fn, rng=None):
    """y = fn(x);  dx and the gradients of the parameters in ``fn`` come from computing y again

    ``fn`` maps a Tensor to a Tensor and must do the same each time, so it contains no batch norm, whose running arrays
    would be updated twice. ``rng`` is the generator that it draws from; the second call gets the same numbers.
    Parameters get gradients only if x needs one.
    """
    generator = default_rng(rng).bit_generator
    before = generator.state
    with no_grad():
        y = fn(Tensor(x)).data

    def backward(dy):
        again, after = Tensor(x, requires_grad=True), generator.state
        generator.state = before
        fn(again).backward(dy)
        generator.state = after
        return again.grad

    return y, backward
