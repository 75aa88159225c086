"""Run a model with one's own ops in place of minitl's."""

import contextlib

from .autograd import OPS
from .errors import InputError, did_you_mean


@contextlib.contextmanager
def plug(**functions):
    """Use ``functions`` as the ops of these names inside ``with plug(softmax=my_softmax):``, on every device.

    A function takes and returns what an op does (see ``op``), and may be decorated by ``@op``. An op that does several
    steps at once calls no other ops: ``attention`` has a softmax of its own. Raises InputError for an unknown name.
    """
    for name, fn in functions.items():
        if name not in OPS:
            raise InputError(f"minitl has no op {name!r} that {fn.__name__} could replace; {did_you_mean(name, OPS)}")
    before = {name: OPS[name] for name in functions}
    OPS.update({name: getattr(fn, "__wrapped__", fn) for name, fn in functions.items()})
    try:
        yield
    finally:
        OPS.update(before)
