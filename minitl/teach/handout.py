"""A Python file of stubs for those who grade single ops by ``pytest --student``."""

import ast
import inspect

from ..autograd import PLAIN
from ..errors import InputError, did_you_mean

HEAD = '''\
"""Write these ops; hand in this file. Grade it in a clone of minitl with: pytest --student {file}

An op is a function of arrays that returns its value and a function ``backward(dy)``, which returns one gradient for
each array, of its shape. It writes neither into its arguments nor into dy, and returns float32 for float32.
"""

import numpy as np
'''
BODY = """    raise NotImplementedError("{name}: your code here")
    y = ...

    def backward(dy):
        return ...

    return y, backward
"""


def handout(names, file="hw.py"):
    """Return the text of a file with a stub for each op: its signature and what it says of itself, without its code."""
    for name in names:
        if name not in PLAIN:
            raise InputError(f"minitl has no op {name!r}; {did_you_mean(name, PLAIN)}")
    return "\n\n".join([HEAD.format(file=file).rstrip("\n") + "\n", *(_stub(name) for name in names)])


def _stub(name):
    function = ast.parse(inspect.getsource(PLAIN[name])).body[0]
    signature = f"def {name}({ast.unparse(function.args)}):\n"
    text = inspect.cleandoc(inspect.getdoc(PLAIN[name]) or "").split("\n")
    lines = "\n    ".join(line for line in text).replace("    \n", "\n")
    doc = f'    """{lines}"""\n' if len(text) == 1 else f'    """{lines}\n    """\n'
    return signature + doc + BODY.format(name=name)
