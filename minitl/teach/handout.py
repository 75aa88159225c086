"""A Python file of stubs for those who grade single ops by ``pytest --student``."""

import ast
import inspect
import re
import textwrap

from ..autograd import PLAIN
from ..errors import InputError, did_you_mean

HEAD = '''\
"""Write these ops; hand in this file. Grade it in a clone of minitl with: pytest --student {file}

An op is a function of arrays that returns its value and a function ``backward(dy)``, which returns one gradient for
each array, of its shape. It writes neither into its arguments nor into dy, and returns float32 for float32.
"""

import numpy as np
'''
BODY = """\
    y = None  # your code here

    def backward(dy):
        return None  # your code here

    return y, backward
"""
GRADIENT = re.compile(r"\bd([abkqtvxyzALSWXZ]|weight|bias|logits)(_\w+)?\b")
CLAUSE = re.compile(r"(?<=[,;:.])\s{2,}|(?<=\.)\s|\n(?=d[a-zA-Z])")


def handout(names, file="hw.py"):
    """Return the text of a file with a stub for each op: its signature, shapes and formula, without the gradient."""
    for name in names:
        if name not in PLAIN:
            raise InputError(f"minitl has no op {name!r}; {did_you_mean(name, PLAIN)}")
    return "\n\n".join([HEAD.format(file=file).rstrip("\n") + "\n", *(_stub(name) for name in names)])


def _stub(name):
    function = ast.parse(inspect.getsource(PLAIN[name])).body[0]
    paragraphs = map(_without_gradient, inspect.getdoc(PLAIN[name]).split("\n\n"))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    end = "\n" if "\n" in text else ""
    doc = textwrap.indent(f'"""{text}{end}"""\n', "    ")
    return f"def {name}({ast.unparse(function.args)}):\n{doc}{BODY}"


def _without_gradient(text):
    kept = "  ".join(clause for clause in CLAUSE.split(text) if not GRADIENT.search(clause))
    return textwrap.fill(kept.rstrip(",;:"), 110)
