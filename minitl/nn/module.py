"""Module: parameters are found by walking over attributes in the order they were set; nothing is registered."""

import importlib

import numpy as np

from ..autograd import Tensor
from ..backend import FLOATS, array_module, describe, is_array, to_device, to_numpy
from ..errors import InputError


class Parameter(Tensor):
    """A Tensor that is learned; ``data`` is a float32 or float64 array."""

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """Base class of all layers. Subclasses set attributes in ``__init__`` and define ``forward``.

    Its state consists of all attributes that are a Parameter, a Module, an array (a buffer, which is not learned) or a
    list or tuple of Parameters and Modules; their paths, such as ``blocks.3.attn.qkv.weight``, are the names in
    ``state_dict``. Any method raises TypeError if weights are kept deeper (in a dict, in a list of lists) or a module
    contains itself.
    """

    training = True

    def __call__(self, *args):
        return self.forward(*args)

    def _walk(self, path="", above=()):
        """Yield (path, member, owner) for each Module, Parameter and buffer below, in the order they were set."""
        if any(self is module for module in above):
            raise TypeError(f"{path[:-1]} is a {type(self).__name__} that contains itself")
        for attribute, value in vars(self).items():
            for key, member in _held(attribute, value):
                yield path + key, member, self
                if isinstance(member, Module):
                    yield from member._walk(f"{path}{key}.", (*above, self))

    def _members(self):
        """Return (path, member, owner) for each Parameter and buffer."""
        return [found for found in self._walk() if not isinstance(found[1], Module)]

    def named_parameters(self):
        """Return pairs (path, Parameter), in the order in which the attributes were set."""
        return [(path, member) for path, member, _ in self._walk() if isinstance(member, Parameter)]

    def parameters(self):
        """Return the Parameters, in the order of ``named_parameters``."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self):
        """Return the number of trainable scalars."""
        return sum(parameter.size for parameter in self.parameters())

    def modules(self):
        """Return this module and all below it."""
        return [self, *(member for _, member, _ in self._walk() if isinstance(member, Module))]

    def train(self, mode=True):
        """Set training mode (dropout drops, batch norm uses the batch) here and below; returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """Set evaluation mode here and below; returns the module."""
        return self.train(False)

    def zero_grad(self):
        """Set all gradients to None; an optimizer sets them to zero instead."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device=None, dtype=None):
        """Move parameters and buffers to ``"cpu"`` or ``"cuda"`` and/or to ``"float32"`` or ``"float64"``.

        Integer and boolean buffers keep their dtype. Gradients are dropped; create the optimizer after this. Returns
        the module. Raises ValueError for any other device or dtype, and RuntimeError if no GPU can be used.
        """
        if dtype not in (None, *FLOATS):
            raise ValueError(f"modules compute in float32 or float64, not {dtype}")
        for path, member, owner in self._members():
            array = member.data if isinstance(member, Parameter) else member
            array = array if device is None else to_device(array, device)
            array = array if dtype is None or array.dtype.kind != "f" else array.astype(dtype, copy=False)
            if isinstance(member, Parameter):
                member.data, member.grad = array, None
            else:
                setattr(owner, path.rpartition(".")[2], array)
        if device == "cuda":
            importlib.import_module("minitl.fast.cuda")  # registers the CUDA forms of ops
        return self

    def state_dict(self):
        """Return all parameters and buffers by path: the arrays themselves, not copies."""
        return {path: member.data if isinstance(member, Parameter) else member for path, member, _ in self._members()}

    def load_state_dict(self, state):
        """Copy arrays by path into this module, keeping its device and dtype.

        Raises InputError, with nothing changed, listing each name that is missing, unknown, of another shape or not
        numeric.
        """
        own, state = self.state_dict(), {name: to_numpy(array) for name, array in state.items()}
        wrong = [f"missing: {name} {describe(own[name])}" for name in own if name not in state]
        wrong += [f"unknown: {name} {describe(state[name])}" for name in state if name not in own]
        for name, here, there in ((name, own[name], state[name]) for name in own if name in state):
            if here.shape != there.shape or there.dtype.kind not in "fiub":
                wrong.append(f"differs: {name} is {describe(here)} here, {describe(there)} there")
        if wrong:
            raise InputError("these weights do not fit this model; nothing was loaded\n  " + "\n  ".join(wrong))
        for name, array in own.items():
            array[...] = array_module(array).asarray(state[name])


def _held(attribute, value):
    """Return (path, member) for each Module, Parameter and buffer of an attribute; NumPy scalars count as options."""
    if isinstance(value, Module | Parameter) or (is_array(value) and not isinstance(value, np.generic)):
        return [(attribute, value)]
    items = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
    found = [(f"{attribute}.{i}", item) for i, item in items if _has_weights(item)]
    if not all(isinstance(item, Module | Parameter) for _, item in found):
        raise TypeError(f"attribute {attribute!r} hides weights; keep them in a plain list, or in a Module")
    return found


def _has_weights(value):
    """Return True for a Module, a Parameter, or a container with one at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return isinstance(value, Module | Parameter) or any(map(_has_weights, inner))


def xavier_uniform(rng, shape, parts=1):
    """Uniform in ±√(6 / (in + out)) for a matrix (in, out) (Glorot & Bengio, 2010).

    With ``parts`` > 1 the columns are that many matrices side by side, each with the limit for its own shape.
    """
    limit = np.sqrt(6 / (shape[0] + shape[1] // parts))
    return Parameter(rng.uniform(-limit, limit, shape).astype(np.float32))


def lecun_normal(rng, shape):
    """Normal with variance 1 / fan-in, truncated at two standard deviations, for a kernel (..., in, out)."""
    draws = rng.standard_normal(shape)
    while (far := np.abs(draws) > 2).any():
        draws[far] = rng.standard_normal(int(far.sum()))
    std = 0.87962566  # of the truncated draws
    return Parameter((draws / (std * np.sqrt(np.prod(shape[:-1])))).astype(np.float32))


def normal(rng, shape, std):
    """Normal with mean 0 and standard deviation ``std``."""
    return Parameter((std * rng.standard_normal(shape)).astype(np.float32))


def constant(value, *shape):
    """Parameter of this shape, filled with ``value``."""
    return Parameter(np.full(shape, value, np.float32))
