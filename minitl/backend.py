"""Which array library an array belongs to, where arrays live, and where random numbers come from.

NumPy is always there; CuPy is looked at only when somebody asks for the GPU, so ``import minitl`` stays light.
"""

import functools
import sys

import numpy as np

DEVICES = ("cpu", "cuda")
CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")  # wheels that all bring the module `cupy`
EXTRAS = '`pip install -e ".[cuda12]"` or `".[cuda13]"`'  # in a clone
FLOATS = (np.dtype("float32"), np.dtype("float64"))


_generator = np.random.default_rng(0)


def array_module(x):
    """The library of the array ``x``: ``numpy`` or ``cupy``, by convention called ``xp``."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}; wrap Python data with minitl.tensor(...)")


def is_array(x):
    """Whether ``x`` is an array of either library (a NumPy scalar counts, it is an array with no axes)."""
    cupy = sys.modules.get("cupy")
    return isinstance(x, np.ndarray | np.generic) or (cupy is not None and isinstance(x, cupy.ndarray))


def describe(x):
    """Kind and shape of an array for a message, as ``float32[2, 3]``; other things as Python prints them."""
    return f"{x.dtype}{list(x.shape)}" if is_array(x) else repr(x)


def cuda_problem():
    """Why the GPU cannot be used, as a sentence; ``None`` when it can.

    An import of CuPy proves nothing: it succeeds on machines without a driver. So a small product is computed.
    """
    from importlib.metadata import distributions  # here, for `import minitl` need not wait for it

    wheels = [name for name in CUPY if any(distributions(name=name))]
    if len(wheels) > 1:
        return (
            f"CuPy is installed {len(wheels)} times ({', '.join(wheels)}) and overwrites itself; uninstall all but one"
        )
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); what fits your driver is installed by {EXTRAS}"
    try:
        if not cupy.cuda.is_available():
            return (
                f"CuPy is installed but finds no usable GPU or driver{_no_device(cupy)}; `nvidia-smi` should list one"
            )
        cupy.cuda.nvrtc.getVersion()
        (cupy.eye(2) @ cupy.eye(2)).sum().item()
    except Exception as error:  # CuPy raises many kinds: no toolkit, no compiler, no memory
        if "nvrtc" in str(error).lower() or isinstance(error, ImportError):
            return f"CuPy finds no CUDA toolkit ({error}); {EXTRAS} brings one"
        return f"CuPy finds a GPU but cannot compute on it: {type(error).__name__}: {error}"
    return None


def _no_device(cupy):
    """What the driver says, in brackets, where it says anything."""
    try:
        return f" (it counts {cupy.cuda.runtime.getDeviceCount()})"
    except Exception as error:
        return f" ({error})"


@functools.cache  # an error is not kept: a GPU may still come
def _expect_cuda():
    """Raise RuntimeError, with the reason, unless a GPU can be used."""
    if problem := cuda_problem():
        raise RuntimeError(f"device 'cuda' cannot be used: {problem}")


def to_device(x, device):
    """Return the array ``x`` on ``"cpu"`` or ``"cuda"``; the same object if it is there already.

    Raises ``ValueError`` for another device name and ``RuntimeError`` when no GPU can be used.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if isinstance(x, np.ndarray | np.generic):
        if device == "cpu":
            return np.asarray(x)
        _expect_cuda()
        return sys.modules["cupy"].asarray(x)
    return array_module(x).asnumpy(x) if device == "cpu" else x


def to_numpy(x):
    """A NumPy array with the values of ``x``: an array of either library, a Tensor, or nested lists."""
    x = x if is_array(x) else getattr(x, "data", x)
    return to_device(x, "cpu") if is_array(x) else np.asarray(x)


def seed(n):
    """Start the package's own random numbers anew from the integer ``n``.

    Weights, data order and dropout masks all come from one host generator, whatever the device, so that a CPU run
    and a GPU run with one seed start identical.
    """
    _generator.bit_generator.state = np.random.default_rng(n).bit_generator.state


def default_rng(rng=None):
    """``rng`` itself, or the package's generator when it is ``None``."""
    return _generator if rng is None else rng
