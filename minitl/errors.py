"""InputError, and helpers that write its messages."""

import dataclasses
import difflib
import typing


class InputError(ValueError):
    """An option, a file or a shape that cannot be used; the message says why, and what to do."""


def did_you_mean(name, known, otherwise=None):
    """Return a hint for an unknown ``name``: the ``known`` names that it resembles, ignoring case.

    If it resembles none, return ``otherwise``, or else the list of all known names.
    """
    names = {str(one).lower(): str(one) for one in known}
    found = [names[key] for key in difflib.get_close_matches(str(name).lower(), names)]
    return f"did you mean {' or '.join(found)}?" if found else otherwise or f"choose one of {', '.join(names.values())}"


def check_types(config):
    """Raise InputError for the first field of the dataclass ``config`` that is not of its declared type."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
        inner = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal:
            fits, wanted = value in inner, f"one of {', '.join(inner)}"
        elif typing.get_origin(kind) is tuple:
            fits = isinstance(value, tuple | list) and all(type(x) is int for x in value)
            fits = fits and (... in inner or len(value) == len(inner))
            wanted = "a tuple of integers" if ... in inner else "a pair of integers"
        else:
            kinds = (*(inner or (kind,)), *((int,) if kind is float else ()))
            fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            wanted = "of type " + " or ".join("None" if k is type(None) else k.__name__ for k in inner or (kind,))
        if not fits:
            raise InputError(f"{field.name} must be {wanted}, got {value!r}")
