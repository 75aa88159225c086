"""A run in one safetensors file: written whole or not at all, and read back only if everything fits.

Everything with ``state_dict()`` and ``load_state_dict()`` is a part; ``collect`` names its arrays ``part.name``, as in
``model.head.weight`` or ``optimizer.exp_avg``. Counters, configuration and metrics go into ``meta``:

    parts = {"model": model, "optimizer": optimizer, "ema": ema}
    save(path, collect(parts), {"step": 300, "config": config})

    arrays, meta = load(path)
    compare_config(meta["config"], config)
    restore(arrays, parts)
"""

import json
from pathlib import Path

import numpy as np

from .. import __version__
from ..backend import describe, to_numpy
from ..errors import InputError
from . import files

FORMAT = 2  # increase it when older versions of minitl can no longer read the files correctly
DTYPES = ("float16", "float32", "float64", "int64", "uint8", "bool")


def save(path, arrays, meta):
    """Write ``arrays``, {name: NumPy or CuPy array}, and ``meta``, a dict for JSON, to the file ``path``.

    At every moment ``path`` is either the old checkpoint or the new one, see ``files.write``. Raises InputError if it
    cannot be written, and TypeError for dtypes other than ``DTYPES`` or a ``meta`` that JSON cannot hold.
    """
    from safetensors.numpy import save as to_bytes

    # safetensors writes memory as it is, so the order must be C
    host = {name: np.asarray(to_numpy(array), order="C") for name, array in arrays.items()}
    for name, array in host.items():
        if array.dtype not in DTYPES:
            raise TypeError(f"{name} is {array.dtype}; a checkpoint holds {', '.join(DTYPES)}")
    content = to_bytes(host, {"format": str(FORMAT), "minitl": __version__, "meta": json.dumps(meta)})
    files.write(path, content)


def load(path):
    """Return the ``(arrays, meta)`` that ``save`` wrote to ``path``, as NumPy arrays, bit for bit.

    Raises InputError if the file is missing, truncated, not from minitl, or of a later format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give the path of a file that minitl saved")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if not {"format", "minitl", "meta"} <= header.keys() or not header["format"].isdecimal():
                raise InputError(f"{path} is a safetensors file, but not a checkpoint of minitl")
            if int(header["format"]) > FORMAT:
                raise InputError(
                    f"{path} was saved by minitl {header['minitl']} in format {header['format']}, and this minitl "
                    f"({__version__}) reads formats up to {FORMAT}; update minitl"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["meta"])  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, json.JSONDecodeError) as error:  # TypeError: bfloat16, say
        raise InputError(f"{path} is damaged, truncated or not a checkpoint ({error}); use another one") from error


def collect(parts):
    """Return {part.name: array} of the ``state_dict()`` of all ``parts``, a dict of objects by name."""
    return {f"{part}.{name}": array for part, owner in parts.items() for name, array in owner.state_dict().items()}


def restore(arrays, parts, ignore=()):
    """Load ``arrays``, as returned by ``load``, into ``parts``, except those of the parts named in ``ignore``.

    Raises InputError with a list of all names that are missing or unknown and all arrays of another shape or dtype;
    then nothing changes.
    """
    found = {name: array for name, array in arrays.items() if name.split(".")[0] not in ignore}
    wanted = collect(parts)
    wrong = [f"missing: {name} {describe(wanted[name])}" for name in wanted if name not in found]
    wrong += [f"unknown: {name} {describe(found[name])}" for name in found if name not in wanted]
    both = [(name, describe(found[name]), describe(wanted[name])) for name in wanted if name in found]
    wrong += [
        f"different: {name} is {theirs} in the checkpoint, {ours} here" for name, theirs, ours in both if theirs != ours
    ]
    if wrong:
        raise InputError("the checkpoint does not fit; nothing was loaded\n  " + "\n  ".join(wrong))
    for part, owner in parts.items():
        owner.load_state_dict({name: found[f"{part}.{name}"] for name in owner.state_dict()})


def compare_config(saved, wanted):
    """Raise InputError with a list of all fields in which two configurations, dicts that may be nested, differ."""
    saved, wanted = _flatten(saved), _flatten(wanted)
    absent = object()
    names = [name for name in saved | wanted if saved.get(name, absent) != wanted.get(name, absent)]
    wrong = [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} here" for name in names
    ]
    if wrong:
        raise InputError(
            "the checkpoint has another configuration; use its options, or start a new run\n  " + "\n  ".join(wrong)
        )


def _flatten(config, prefix=""):
    """Map {"model": {"width": 48}} to {"model.width": 48}, with values as JSON returns them: tuples become lists."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {prefix + name: json.loads(json.dumps(value))}
    return flat
