"""Libraries in processes of their own that take turns.

Two OpenMP pools in one process disturb each other, and a machine that grows hot or busy in the course of a benchmark
favours whoever came first. So a script makes a `Worker` for each library, which starts that script again with
``--serve``, there to answer in `serve`; and `rounds` lets the workers measure one after another, again and again. A
ratio is the median over the rounds of the ratio within a round.

The parent and a worker exchange lines of JSON; a worker may run in another Python. This file needs no fastconv.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTCONV_NUM_THREADS")
Times = dict[str, float]  # name of a way to do the job -> seconds


class Failed(Exception):
    """A library cannot do a job; says why."""


class Worker:
    """A library in a process of its own; ``worker.ask(method, *arguments)`` calls a method of its `Library` there."""

    def __init__(self, library: str, python: str, threads: int) -> None:
        self.name = library
        command = [python, os.path.abspath(sys.argv[0]), "--serve", library, "--threads", str(threads)]
        env = os.environ | dict.fromkeys(THREADS, str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.versions = self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Library:
    """The worker's side: a subclass fills `calls`, by a method of its own, with the ways to do the job at hand."""

    version = ""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.calls: dict[str, Callable[[], Any]] = {}

    def measure(self, seconds: float) -> Times:
        """The shortest time of each call, repeated for so many seconds."""
        return {name: shortest(call, seconds) for name, call in self.calls.items()}

    def peak(self) -> int:
        """The most bytes of memory that this process has held so far; Windows does not tell."""
        if sys.platform == "linux":  # where getrusage also counts what the starting process held
            with open("/proc/self/status") as status:
                return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def shortest(call: Callable[[], Any], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            return best


def settle(limit: float = 1.0) -> None:
    """Sleep until this process's threads do so too: idle pools spin for up to a tenth of a second."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def serve(make: Callable[[int], Library], threads: int) -> None:
    """Answer the parent until it hangs up."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a library that prints must not disturb the talk

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        library = make(threads)
    except ImportError as problem:
        say(error=f"{problem}; expected a Python that has it, see --peer-python")
        return
    say(value=library.version)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            value = getattr(library, method)(*arguments)
            settle()
            say(value=value)
        except Exception as problem:  # whatever a library finds wrong with a job is the parent's to report
            library.calls = {}
            say(error=f"{type(problem).__name__}: {problem}")


def start(libraries: Sequence[str], python: Mapping[str, str], threads: int) -> dict[str, Worker]:
    """A worker for each library; one whose package is missing is left out, and it is said so."""
    workers = {}
    for name in libraries:
        try:
            workers[name] = Worker(name, python.get(name, sys.executable), threads)
        except Failed as problem:
            print(f"without {problem}", file=sys.stderr)
    return workers


def rounds(workers: Sequence[Worker], seconds: float, number: int, seldom: Sequence[str] = ()) -> list[Times]:
    """Let each worker measure its calls in each round; the libraries in `seldom`, which are slow, only in the first."""
    measured = []
    for i in range(number):
        times: Times = {}
        for worker in workers:
            if i == 0 or worker.name not in seldom:
                times.update(worker.ask("measure", seconds))
        measured.append(times)
    return measured


def best(measured: Sequence[Times]) -> Times:
    """The shortest time of each call over all rounds."""
    shortest: Times = {}
    for times in measured:
        for name, seconds in times.items():
            shortest[name] = min(seconds, shortest.get(name, seconds))
    return shortest


def ratio(measured: Sequence[Times], ours: str, theirs: Sequence[str]) -> float:
    """How many times faster `ours` is than the fastest of `theirs`: the median over the rounds that have them."""
    ratios = [min(t[name] for name in theirs if name in t) / t[ours] for t in measured if any(n in t for n in theirs)]
    return statistics.median(ratios) if ratios else float("nan")
