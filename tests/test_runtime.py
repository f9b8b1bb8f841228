"""Threads, levels of instructions, environment variables, forks, other Python threads, memory that is used again.

What the environment decides at import is tested in processes of their own, each with a time limit: a kernel that hangs
after a fork must fail, not wait.
"""

import io
import json
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import threadpoolctl

import fastconv as fc
from fastconv import _kernels, costs, runtime
from fastconv._kernels import cpu, memory
from oracle import bits
from problems import Problem

P = Problem("runtime", 4, 20, 21, 32, 48, P=1)


def answers(**how):
    """Forward and both gradients of a layer that is worth a team of threads."""
    x, w, b, dy = P.arrays()
    return (
        fc.conv2d(x, w, b, P=1, **how), fc.conv2d_grad_x(dy, w, x.shape, P=1, **how),
        fc.conv2d_grad_w(dy, x, w.shape, P=1, **how),
    )  # fmt: skip


def same(a, b):
    return all(bits(*pair) for pair in zip(a, b, strict=True))


def python(code, timeout=60, **environment):
    """Run code in a new interpreter with these environment variables; returns what it did."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCONV_", "OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**clean, **environment}, timeout=timeout,
        capture_output=True, text=True,
    )  # fmt: skip


def printed(code, **environment):
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---------------------------------------------------------------- threads
def test_set_and_get_threads():
    with fc.num_threads(3):
        assert fc.get_num_threads() == 3
        with fc.num_threads(np.int64(1)):
            assert fc.get_num_threads() == 1
            fc.set_num_threads(2)
            assert fc.get_num_threads() == 2
        assert fc.get_num_threads() == 3


def test_threads_are_put_back_after_an_error():
    before = fc.get_num_threads()

    def fail():
        with fc.num_threads(before + 1):
            assert fc.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert fc.get_num_threads() == before


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError), (None, TypeError),
     (2**31, ValueError), (2**70, ValueError)],
)  # fmt: skip
def test_thread_counts_that_are_none(n, error):
    with fc.num_threads(2):
        for call in (fc.set_num_threads, lambda n: fc.num_threads(n).__enter__()):
            with pytest.raises(error, match=r"^set_num_threads: n "):
                call(n)
        assert fc.get_num_threads() == 2


def test_many_more_threads_than_cores_give_the_same_bits():
    with fc.num_threads(1):
        one = answers()
    with fc.num_threads(17):
        assert same(answers(), one)


def test_threads_from_the_environment():
    code = "import fastconv as fc; print(fc.get_num_threads())"
    assert printed(code, FASTCONV_NUM_THREADS="3") == ["3"]
    assert printed(code, OMP_NUM_THREADS="5") == ["5"]
    assert printed(code, FASTCONV_NUM_THREADS="2", OMP_NUM_THREADS="7") == ["2"]
    assert printed(code, FASTCONV_NUM_THREADS="", OMP_NUM_THREADS="7") == ["7"]
    override = "import fastconv as fc; fc.set_num_threads(4); print(fc.get_num_threads())"
    assert printed(override, FASTCONV_NUM_THREADS="2", OMP_NUM_THREADS="7") == ["4"]


def test_default_threads_are_the_cores_this_process_may_use():
    assert printed("import fastconv as fc; print(fc.get_num_threads())") == [str(runtime._cores())]
    if hasattr(os, "sched_setaffinity"):
        code = """
            import os
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            import fastconv as fc
            print(fc.get_num_threads())
        """
        assert printed(code) == ["1"]


def test_the_quota_of_a_control_group(tmp_path):
    for text, cores in [("150000 100000", 2), ("200000 100000\n", 2), ("50000 100000", 1), ("max 100000", None),
                        ("", None), ("7", None)]:  # fmt: skip
        (tmp_path / "cpu.max").write_text(text)
        assert runtime._quota(tmp_path / "cpu.max") == cores
    assert runtime._quota(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "2 3"])
def test_a_bad_count_in_the_environment_is_said(text):
    done = python("import fastconv", FASTCONV_NUM_THREADS=text)
    assert done.returncode == 1
    assert f"FASTCONV_NUM_THREADS is a count of threads; expected an integer of at least 1, got {text!r}" in done.stderr


def test_threadpoolctl_limits_the_threads():
    code = """
        import fastconv as fc, threadpoolctl
        print(fc.get_num_threads())
        with threadpoolctl.threadpool_limits(1, user_api="openmp"):
            print(fc.get_num_threads())
        print(fc.get_num_threads())
    """
    assert printed(code, OMP_NUM_THREADS="3") == ["3", "1", "3"]


def test_threadpoolctl_sees_our_openmp():
    answers()
    assert any(pool["user_api"] == "openmp" for pool in threadpoolctl.threadpool_info())


# ---------------------------------------------------------------- levels of instructions
def test_levels_rise_and_the_best_is_taken():
    levels = fc.available_isas()
    assert levels[0] in ("baseline", "neon")
    assert levels == tuple(n for n in ("baseline", "neon", "avx2", "avx512") if n in levels)
    assert printed("import fastconv as fc; print(fc.isa())") == [levels[-1]]


def test_the_level_from_the_environment():
    for level in fc.available_isas():
        code = "import fastconv as fc, numpy as np; print(fc.isa(), fc.explain((1, 4, 4, 1), (3, 3, 1, 1)).isa)"
        assert printed(code, FASTCONV_ISA=level) == [level, level]
    assert printed("import fastconv as fc; print(fc.isa())", FASTCONV_ISA="") == [fc.available_isas()[-1]]


def test_an_unknown_level_is_refused_and_those_that_run_are_named():
    done = python("import fastconv", FASTCONV_ISA="sse9")
    assert done.returncode == 1
    for word in ("FASTCONV_ISA", "'sse9'", *fc.available_isas()):
        assert word in done.stderr
    before = fc.isa()
    with pytest.raises(ValueError, match=r"^use_isa: name .*'baseline'.*got 'sse9'"):
        fc.use_isa("sse9")
    with pytest.raises(TypeError, match=r"^use_isa: name "):
        fc.use_isa(2)
    assert fc.isa() == before


def test_a_switch_takes_effect_at_once(isa):
    """explain says so, and the kernels in use are those of the level."""
    assert fc.isa() == isa
    assert fc.explain(P.x_shape(), P.w_shape(), P=1).isa == isa
    first = answers()
    for other in fc.available_isas():
        fc.use_isa(other)
        answers()
    fc.use_isa(isa)
    assert same(answers(), first)


def test_a_folder_without_modules_is_no_level(tmp_path, monkeypatch):
    for name in ("baseline", "avx2"):
        (tmp_path / name).mkdir()
    (tmp_path / "baseline" / "conv.so").touch()
    monkeypatch.setattr(_kernels, "__file__", str(tmp_path / "__init__.py"))
    assert _kernels._available() == ("baseline",)


def test_levels_use_kernels_of_their_own():
    """Fused multiply-add rounds once where the baseline rounds twice: other bits, or the switch did nothing."""
    code = """
        import hashlib, numpy as np, fastconv as fc
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((1, 9, 9, 64)), rng.standard_normal((3, 3, 64, 8))
        print(hashlib.sha256(fc.conv2d(x, w, method="direct").tobytes()).hexdigest())
    """
    digests = {level: printed(code, FASTCONV_ISA=level)[0] for level in fc.available_isas()}
    fused = {d for level, d in digests.items() if level in ("avx2", "avx512")}
    assert digests.get("baseline") not in fused
    assert len(set(digests.values())) > 1 or len(digests) == 1


# ---------------------------------------------------------------- fork
FORK = """
    import os, sys, numpy as np, fastconv as fc
    x, w = np.ones((8, 30, 30, 16), np.float32), np.ones((3, 3, 16, 32), np.float32)
    fc.set_num_threads(2)
    {before}
    pid = os.fork()
    if pid == 0:
        y = fc.conv2d(x, w, P=1)
        dx, dw, db = fc.conv2d_backward(y, x, w, P=1)
        right = y[0, 5, 5, 0] == 144 and fc.get_num_threads() == {threads}
        os._exit(0 if right else 3)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), fc.get_num_threads(), fc.conv2d(x, w, P=1)[0, 5, 5, 0])
"""


@pytest.mark.parametrize("before", ["fc.conv2d(x, w, P=1)", "pass"])
def test_a_forked_child_computes_on_one_thread(before):
    """libgomp's threads do not exist in the child, which would wait for them for ever; the time limit tells."""
    assert hasattr(os, "fork") or sys.platform == "win32"
    if hasattr(os, "fork"):
        assert printed(FORK.format(before=before, threads=1)) == ["0", "2", "144.0"]


def test_a_child_may_not_raise_its_threads():
    code = FORK.format(before="fc.conv2d(x, w, P=1)", threads=1).replace("y = fc", "fc.set_num_threads(4); y = fc")
    if hasattr(os, "fork"):
        assert printed(code) == ["0", "2", "144.0"]


def test_a_pool_of_workers(tmp_path):
    """Forked after OpenMP was used, or started afresh."""
    script = tmp_path / "pool.py"
    script.write_text("""
import multiprocessing as mp, sys, numpy as np, fastconv as fc

def job(i):
    x = np.full((4, 30, 30, 8), i, np.float32)
    return float(fc.conv2d(x, np.ones((3, 3, 8, 16), np.float32), P=1)[0, 5, 5, 0])

if __name__ == "__main__":
    fc.set_num_threads(2)
    job(1)
    with mp.get_context(sys.argv[1]).Pool(2) as pool:
        print(*pool.map(job, range(4)))
""")
    for method in ("fork", "spawn") if hasattr(os, "fork") else ("spawn",):
        done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == ["0.0", "72.0", "144.0", "216.0"]


# ---------------------------------------------------------------- several Python threads
def test_python_threads_at_once():
    """Four callers, each with other data, on two threads each: everyone gets the bits of a lonely call."""
    problems = [Problem(f"caller {i}", 2, 12 + i, 15, 8 * i, 20 + i, 3, P=1) for i in range(1, 5)]
    jobs = []
    for p in problems:
        x, w, b, dy = p.arrays()
        jobs.append(lambda x=x, w=w, b=b, dy=dy: (
            fc.conv2d(x, w, b, P=1), fc.conv2d_grad_x(dy, w, x.shape, P=1), fc.conv2d_grad_w(dy, x, w.shape, P=1),
        ))  # fmt: skip
    with fc.num_threads(2):
        right = [job() for job in jobs]
        wrong, barrier = [], threading.Barrier(len(jobs))

        def call(i):
            barrier.wait(timeout=60)
            wrong.extend(i for _ in range(30) if not same(jobs[i](), right[i]))

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_kernels_release_the_gil():
    """While one thread is in a long kernel, another one runs Python code."""
    x, w = np.ones((4, 64, 64, 64), np.float32), np.ones((7, 7, 64, 64), np.float32)
    inside, beats = threading.Event(), []

    def work():
        inside.set()
        with fc.num_threads(1):
            fc.conv2d(x, w, P=3, method="direct")
        inside.clear()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(timeout=60)
    while inside.is_set():
        beats.append(None)
    thread.join(timeout=60)
    assert len(beats) > 100


# ---------------------------------------------------------------- denormals
def test_the_callers_floating_point_state_is_as_it_was():
    """A process that computes with denormals still does so after a call, and on its own other threads."""
    tiny, found = np.float32(1e-42), []
    answers()
    thread = threading.Thread(target=lambda: (answers(), found.append(tiny * np.float32(0.5))))
    thread.start()
    thread.join(timeout=60)
    found.append(tiny * np.float32(0.5))
    assert [float(f) > 0 for f in found] == [True, True]


def test_importing_does_not_switch_denormals_off():
    """What -ffast-math in a linker's command would do to the whole process."""
    assert printed("import numpy as np, fastconv; print(float(np.float32(1e-42) * np.float32(0.5)) > 0)") == ["True"]


# ---------------------------------------------------------------- memory
def test_freed_results_are_used_again_and_given_back():
    shape = (1 << 20,)
    try:
        fc.set_cache_limit(64)
        memory.empty(shape, "f4")
        assert memory.cached_bytes() >= 4 << 20
        at = memory.empty(shape, "f4").ctypes.data
        assert memory.empty(shape, "f4").ctypes.data == at
        kept = [memory.empty(shape, "f4") for _ in range(3)]
        assert len({a.ctypes.data for a in kept}) == 3
        assert all(a.ctypes.data % 64 == 0 for a in kept)
        del kept
        fc.set_cache_limit(5)
        assert memory.cached_bytes() <= 5 << 20
        fc.set_cache_limit(0)
        assert memory.cached_bytes() == 0
        memory.empty(shape, "f4")
        assert memory.cached_bytes() == 0
        assert same(answers(), answers())
    finally:
        fc.set_cache_limit(1024)


def test_a_piece_is_not_wasted_on_much_smaller_arrays():
    try:
        fc.set_cache_limit(0)
        fc.set_cache_limit(64)
        memory.empty((1 << 20,), "f4")
        held = memory.cached_bytes()
        small = memory.empty((1 << 18,), "f4")
        assert memory.cached_bytes() == held
        assert small.shape == (1 << 18,)
    finally:
        fc.set_cache_limit(1024)


def test_the_cache_holds_a_bounded_number_of_pieces():
    try:
        kept = [memory.empty(((1 << 13) + 8 * i,), "f4") for i in range(600)]
        fc.set_cache_limit(0)
        fc.set_cache_limit(1024)
        least, largest = kept[0].nbytes, kept[-1].nbytes + 4096  # whole pages
        del kept
        assert 512 * least <= memory.cached_bytes() <= 512 * largest
    finally:
        fc.set_cache_limit(1024)


def test_cache_limits_that_are_none():
    wrong = [(-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError), (2**62, ValueError)]
    for megabytes, error in wrong:
        with pytest.raises(error, match=r"^set_cache_limit: megabytes "):
            fc.set_cache_limit(megabytes)


def test_memory_refuses_what_no_machine_has():
    for shape in [(1 << 60,), (1 << 40, 1 << 40), (1 << 31, 1 << 31, 1 << 31)]:
        with pytest.raises(MemoryError):
            memory.empty(shape, "f4")


def test_calls_do_not_leak():
    """The process's high-water mark stays where it is over many calls that succeed, and that fail."""
    code = """
        import resource, numpy as np, fastconv as fc
        x, w = np.ones((1, 40, 40, 4), np.float32), np.ones((3, 3, 4, 32), np.float32)
        fc.set_num_threads(1)
        def some():
            for i in range(100):
                y = fc.conv2d(x, w, P=1)
                fc.conv2d_backward(y, x, w, P=1)
                try:
                    fc.conv2d(x, w, P=1, out=y[:, 1:])
                except ValueError:
                    pass
        some()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(4):
            some()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    # A result has 200 kB: 400 of them kept would be 80 MB. ru_maxrss is in kB on Linux and in bytes elsewhere.
    unit = 1 if sys.platform == "linux" else 1024
    assert int(printed(code)[0]) / unit < 4_000


# ---------------------------------------------------------------- what was built
def test_show_config_says_what_is_in_force():
    text = io.StringIO()
    with fc.num_threads(2):
        fc.show_config(text)
    lines = dict(line.split(maxsplit=1) for line in text.getvalue().splitlines())
    assert lines["fastconv"] == fc.__version__
    assert lines["numpy"] == np.__version__
    assert lines["isa"].startswith(fc.isa())
    assert lines["threads"].startswith("2 ")
    assert lines["openmp"].startswith("yes" if cpu.has_openmp() else "no")
    assert lines["precision"] == fc.get_precision()
    assert lines["caches"].endswith(" the last")


def test_methods_are_chosen_by_the_caches_of_the_machine(tmp_path):
    """As the system tells of them; a fallback where it does not, or says what nobody understands."""
    caches = ["1 Instruction 32K", "1 Data 48K", "2 Unified 2048K", "3 Unified 36M", "4 Unified ?"]
    for i, told in enumerate(caches):
        (tmp_path / f"index{i}").mkdir()
        for name, text in zip(("level", "type", "size"), told.split(), strict=True):
            (tmp_path / f"index{i}" / name).write_text(text + "\n")
    assert [runtime.cache_bytes(level, 7, tmp_path) for level in (1, 2, 3, 4)] == [48 << 10, 2 << 20, 36 << 20, 7]
    assert runtime.cache_bytes(2, 7, tmp_path / "nowhere") == 7
    assert costs.TURNED == costs.COLUMNS == 4 * runtime.SECOND_CACHE
    assert costs.LARGE == 3 * runtime.LAST_CACHE // 8


def test_precision_has_two_names():
    before = fc.get_precision()
    assert before == "fast"
    for wrong, error in [("high", ValueError), (None, TypeError), (1, TypeError)]:
        with pytest.raises(error, match=r"^set_precision: name "):
            fc.set_precision(wrong)
    assert fc.get_precision() == before


def test_import_loads_nothing_that_is_not_needed():
    """numpy is the only dependency at run time: no extra's package, and no kernel of another level."""
    code = """
        import json, sys
        before = set(sys.modules)
        import fastconv
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    loaded = json.loads("".join(python(code).stdout))
    top = {name.partition(".")[0] for name in loaded}
    assert not top & {"matplotlib", "tqdm", "mlxtend", "safetensors", "PIL", "torch", "scipy", "pandas", "setuptools"}
    levels = {name.split(".")[2] for name in loaded if name.startswith("fastconv._kernels.") and name.count(".") >= 3}
    assert levels <= {fc.available_isas()[-1]}


def test_a_worker_that_moves_keeps_its_processors():
    """A thread of the team may ask for another processor than the caller's; afterwards it may run anywhere again."""
    code = """
        import os, threading, numpy as np, fastconv as fc
        fc.set_num_threads(2)
        x, w = np.ones((8, 32, 32, 16), "f4"), np.ones((3, 3, 16, 16), "f4")
        allowed = os.sched_getaffinity(0)
        for _ in range(200):
            fc.conv2d(x, w, P=1)
        masks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
        print(len(masks) > 1, all(mask == allowed for mask in masks))
        os.sched_setaffinity(0, {min(allowed)})
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), {min(allowed)})
        y = fc.conv2d(x, w, P=1)
        fc.set_num_threads(1)
        print(np.array_equal(y, fc.conv2d(x, w, P=1)))
    """
    if sys.platform == "linux":
        assert printed(code) == ["True"] * 3
