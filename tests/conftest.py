"""Fixtures that several files of tests need."""

import numpy as np
import pytest

from minitl import backend


@pytest.fixture(params=["numpy", "cupy"])
def xp(request):
    """The array library: NumPy always, CuPy where a GPU can be used."""
    if request.param == "numpy":
        return np
    if problem := backend.cuda_problem():
        pytest.skip(problem)
    import cupy

    return cupy


@pytest.fixture
def rng():
    """A generator that starts anew in each test."""
    return np.random.default_rng(5)


@pytest.fixture
def student(pytestconfig):
    """The process of the file that is graded."""
    return pytestconfig.marks.student
