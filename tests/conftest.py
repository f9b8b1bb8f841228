"""Fixtures that every kernel test runs under: each instruction set of this machine, one to three threads."""

from collections.abc import Iterator

import pytest

import fastconv as fc


@pytest.fixture(params=fc.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = fc.isa()
    fc.use_isa(request.param)
    yield request.param
    fc.use_isa(before)


@pytest.fixture(params=(1, 2, 3), ids="{}threads".format)
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with fc.num_threads(request.param):
        yield request.param
