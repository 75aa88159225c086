"""Time for memory: a part of a model that keeps only its input, and computes the rest a second time in backward."""

from ..autograd import Tensor, no_grad, op


@op
def recompute(x, *, fn, rng=None):
    """y = fn(x),  dx and the gradients of the parameters in ``fn`` from calling it again

    ``fn`` maps a Tensor to a Tensor of the same module calls each time: it has no batch norm, whose running means would
    move twice. ``rng`` is the generator that it draws from; the second call sees the same numbers.
    """
    before = rng.bit_generator.state if rng else None
    with no_grad():
        y = fn(Tensor(x)).data

    def backward(dy):
        again = Tensor(x, requires_grad=True)
        after = rng.bit_generator.state if rng else None
        if rng:
            rng.bit_generator.state = before
        fn(again).backward(dy)
        if rng:
            rng.bit_generator.state = after
        return again.grad

    return y, backward
