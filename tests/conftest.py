"""Fixtures: each instruction set of this machine and one to three threads, which kernels are tested under; plans made anew, and
the sizes of AVX-512's tiles."""

from collections.abc import Callable, Iterator

import pytest

import fastconv as fc
from fastconv import _kernels, ops, planning


@pytest.fixture
def replan() -> Iterator[Callable[[], None]]:
    """Forget the plans made so far, for a test that changes what they are made by; once more when it is done."""

    def forget() -> None:
        planning.plan.cache_clear()
        ops._prepare.cache_clear()

    yield forget
    forget()


@pytest.fixture
def sixteen_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the arithmetic that chooses a way: vectors and tiles of the kernels in use as AVX-512 has them."""
    kernel = _kernels.kernel("conv")
    monkeypatch.setattr(kernel, "VECTOR", 64)
    monkeypatch.setattr(kernel, "MR", 14)


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
