"""The array library of an array, transfers between devices, and the source of random numbers.

CuPy is imported only when the GPU is asked for, so ``import minitl`` needs NumPy alone.
"""

import functools
import sys

import numpy as np

DEVICES = ("cpu", "cuda")
CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")  # packages that all install the module `cupy`
EXTRAS = '`pip install -e ".[cuda12]"` or `".[cuda13]"`'  # in a clone
FLOATS = (np.dtype("float32"), np.dtype("float64"))

_generator = np.random.default_rng(0)


def array_module(*xs):
    """Return the library of the first array among ``xs``, ``numpy`` or ``cupy``, by convention called ``xp``.

    Raises TypeError if there is none.
    """
    for x in filter(is_array, xs):
        return np if isinstance(x, np.ndarray | np.generic) else sys.modules["cupy"]
    kind = type(xs[0]).__name__
    raise TypeError(f"expected a NumPy or CuPy array, got {kind}; wrap Python data with minitl.tensor(...)")


def is_array(x):
    """Return True for an array of either library; a NumPy scalar counts as a 0-d array."""
    cupy = sys.modules.get("cupy")
    return isinstance(x, np.ndarray | np.generic) or (cupy is not None and isinstance(x, cupy.ndarray))


def describe(x):
    """Return dtype and shape of an array for a message, such as ``float32[2, 3]``; the ``repr`` of anything else."""
    return f"{x.dtype}{list(x.shape)}" if is_array(x) else repr(x)


def cuda_problem():
    """Return why the GPU cannot be used, as a sentence, or None if it can.

    CuPy can be imported on machines without a driver or toolkit, so this computes a small product.
    """
    from importlib.metadata import distributions  # slow to import, and seldom needed

    wheels = [name for name in CUPY if any(distributions(name=name))]
    if len(wheels) > 1:
        return f"CuPy is installed {len(wheels)} times ({', '.join(wheels)}); uninstall all but one"
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()  # the compiler, which CuPy's own kernels do not need if they are cached
        (cupy.eye(2) @ cupy.eye(2)).sum().item()
    except Exception as error:  # many kinds: no CuPy, no driver, no toolkit, no compiler, no memory
        hint = f"`nvidia-smi` should list a GPU, and {EXTRAS} installs CuPy and the CUDA toolkit"
        return f"CuPy cannot use a GPU ({type(error).__name__}: {error}); {hint}"
    return None


@functools.cache  # errors are not cached, so a GPU may become available later
def _require_cuda():
    """Raise RuntimeError, with the reason, unless a GPU can be used."""
    if problem := cuda_problem():
        raise RuntimeError(f"device 'cuda' cannot be used: {problem}")


def to_device(x, device):
    """Return the array ``x`` on ``"cpu"`` or ``"cuda"``: the same object if it is already there.

    Raises ValueError for another device and RuntimeError if no GPU can be used.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if isinstance(x, np.ndarray | np.generic):
        if device == "cpu":
            return np.asarray(x)
        _require_cuda()
        return sys.modules["cupy"].asarray(x)
    return array_module(x).asnumpy(x) if device == "cpu" else x


def to_numpy(x):
    """Return a NumPy array with the values of ``x``: an array of either library, a Tensor, or nested lists."""
    x = x if is_array(x) else getattr(x, "data", x)
    return to_device(x, "cpu") if is_array(x) else np.asarray(x)


def seed(n):
    """Restart the package's generator from the integer ``n``.

    Weights, data order and dropout masks all come from this one host generator, whatever the device, so runs with the
    same seed start identical on a CPU and a GPU.
    """
    _generator.bit_generator.state = np.random.default_rng(n).bit_generator.state


def default_rng(rng=None):
    """Return ``rng``, or the package's generator if it is None."""
    return _generator if rng is None else rng
