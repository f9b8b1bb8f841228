"""Fixtures: each instruction set of this machine and one to three threads, which kernels are tested under; plans made anew."""

from collections.abc import Callable, Iterator

import pytest

import fastconv as fc
from fastconv import ops, planning


@pytest.fixture
def replan() -> Iterator[Callable[[], None]]:
    """Forget the plans made so far, for a test that changes what they are made by; once more when it is done."""

    def forget() -> None:
        planning.plan.cache_clear()
        ops._prepare.cache_clear()

    yield forget
    forget()


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
