"""What every benchmark here shares: BLAS on as many threads as fastconv, and one way to time a cell of a table."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

import fastconv as fc


@pytest.fixture(scope="session", autouse=True)
def same_threads() -> Iterator[None]:
    """The baseline's matrix products run on as many threads as fastconv."""
    with threadpool_limits(fc.get_num_threads(), user_api="blas"):
        yield


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """``timed(call, table=, row=, column=, library=)``: time a call for one cell of a table that report.py writes.

    A cell compares library "fastconv" with library "NumPy". ``rate``, such as ``(2.5e9, "FLOP")``, is what one call
    does.
    """

    def time(
        call: Callable[[], Any], *, table: str, row: str, column: str, library: str,
        rate: tuple[float, str] | None = None,
    ) -> None:  # fmt: skip
        benchmark.group = f"{table}: {row}, {column}"
        benchmark.extra_info.update(
            table=table, row=row, column=column, library=library, rate=rate, threads=fc.get_num_threads(), isa=fc.isa()
        )
        call()  # plans, and touches memory for the first time
        benchmark(call)

    return time
