"""Module: parameters found by walking over attributes in the order they were set. There is nothing to register."""

import importlib

import numpy as np

from ..autograd import Tensor
from ..backend import FLOATS, array_module, describe, is_array, to_device, to_numpy
from ..errors import InputError


class Parameter(Tensor):
    """A Tensor that is learned. ``data`` is a float32 or float64 array."""

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """Base of all layers. Subclasses set attributes in ``__init__`` and define ``forward``.

    Attributes that are a Parameter, a Module, an array (a buffer: state that is not learned), or a list of Parameters
    and Modules are the module's own; their paths are the names in ``state_dict``: ``blocks.3.attn.qkv.weight``.
    Any method raises TypeError where they are kept deeper (a dict, a list of lists) or a module contains itself.
    """

    training = True

    def __call__(self, *args):
        return self.forward(*args)

    def _walk(self, path="", above=()):
        """(path, thing, owner) for each Module, Parameter and buffer below, in the order in which they were set."""
        if any(self is module for module in above):
            raise TypeError(f"{path[:-1]} is a {type(self).__name__} that contains itself")
        for attribute, value in vars(self).items():
            for key, thing in _own(attribute, value):
                yield path + key, thing, self
                if isinstance(thing, Module):
                    yield from thing._walk(f"{path}{key}.", (*above, self))

    def _members(self):
        """(path, thing, owner) for each Parameter and buffer."""
        return [member for member in self._walk() if not isinstance(member[1], Module)]

    def named_parameters(self):
        """Pairs (path, Parameter), in the order in which the modules were built."""
        return [(path, thing) for path, thing, _ in self._members() if isinstance(thing, Parameter)]

    def parameters(self):
        """The Parameters, in the order of ``named_parameters``."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self):
        """How many numbers are learned."""
        return sum(parameter.size for parameter in self.parameters())

    def modules(self):
        """This module and all below it."""
        return [self, *(thing for _, thing, _ in self._walk() if isinstance(thing, Module))]

    def train(self, mode=True):
        """Set training mode (dropout drops, batch norm uses the batch) here and below; returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """Set evaluation mode here and below; returns the module."""
        return self.train(False)

    def zero_grad(self):
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device=None, dtype=None):
        """Move parameters and buffers to ``"cpu"`` or ``"cuda"`` and/or to ``"float32"`` or ``"float64"``.

        Buffers of integers or booleans keep their type. Gradients are forgotten, and an optimiser must be made
        afterwards. Returns the module.
        """
        if dtype not in (None, *FLOATS):
            raise ValueError(f"modules compute in float32 or float64, not {dtype}")
        for path, value, owner in self._members():
            array = value.data if isinstance(value, Tensor) else value
            array = array if device is None else to_device(array, device)
            array = array if dtype is None or array.dtype.kind != "f" else array.astype(dtype, copy=False)
            if isinstance(value, Tensor):
                value.data, value.grad = array, None
            else:
                setattr(owner, path.rpartition(".")[2], array)
        if device == "cuda":
            importlib.import_module("minitl.fast.cuda")  # from now on ops have their CUDA forms
        return self

    def state_dict(self):
        """All parameters and buffers by path: the arrays themselves, not copies."""
        return {path: thing.data if isinstance(thing, Tensor) else thing for path, thing, _ in self._members()}

    def load_state_dict(self, state):
        """Copy arrays by path into this module, keeping its device and dtype.

        Raises InputError with a list of every name that is missing, unknown, of another shape or not of real
        numbers; then nothing changes.
        """
        own, state = self.state_dict(), {name: to_numpy(array) for name, array in state.items()}
        wrong = [f"missing: {name} {describe(own[name])}" for name in own if name not in state]
        wrong += [f"unknown: {name} {describe(state[name])}" for name in state if name not in own]
        both = [name for name in own if name in state and state[name].shape != own[name].shape]
        wrong += [f"shape: {name} is {describe(own[name])} here, {describe(state[name])} there" for name in both]
        odd = [name for name in own if name in state and state[name].dtype.kind not in "fiub"]
        wrong += [f"not numbers: {name} is {describe(own[name])} here, {describe(state[name])} there" for name in odd]
        if wrong:
            raise InputError("these weights do not fit this model; nothing was loaded\n  " + "\n  ".join(wrong))
        for name, array in own.items():
            array[...] = array_module(array).asarray(state[name])


def _own(attribute, value):
    """(path, thing) for each Module, Parameter and buffer that an attribute holds; a NumPy scalar is an option."""
    if isinstance(value, Module | Parameter) or (is_array(value) and not isinstance(value, np.generic)):
        return [(attribute, value)]
    things = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
    found = [(f"{attribute}.{i}", thing) for i, thing in things if _holds(thing)]
    for _, thing in found:
        if not isinstance(thing, Module | Parameter):
            raise TypeError(f"attribute {attribute!r} hides weights; keep them in a plain list, or in a Module")
    return found


def _holds(value):
    """Whether it is a Module or Parameter, or a container with one at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return isinstance(value, Module | Parameter) or any(map(_holds, inner))


def xavier_uniform(rng, shape, parts=1):
    """Uniform in ±√(6 / (in + out)) for a matrix (in, out) (Glorot & Bengio, 2010).

    ``parts`` > 1: the columns are so many matrices side by side, each drawn with the range that fits it.
    """
    limit = np.sqrt(6 / (shape[0] + shape[1] // parts))
    return Parameter(rng.uniform(-limit, limit, shape).astype(np.float32))


def lecun_normal(rng, shape):
    """Normal with variance 1 / (inputs per output), cut off at two deviations, for a kernel (..., in, out)."""
    draws = rng.standard_normal(shape)
    while (far := np.abs(draws) > 2).any():
        draws[far] = rng.standard_normal(int(far.sum()))
    cut = 0.87962566  # what the cut leaves of the deviation
    return Parameter((draws / (cut * np.sqrt(np.prod(shape[:-1])))).astype(np.float32))


def normal(rng, shape, std):
    """Normal with the deviation ``std``."""
    return Parameter((std * rng.standard_normal(shape)).astype(np.float32))


def constant(value, *shape):
    """The same value everywhere."""
    return Parameter(np.full(shape, value, np.float32))
