"""What was built: OpenMP, every level of instructions and nothing above it, sizes, types, the metadata of the package.

Each level's machine code is looked at: an instruction that the level's processors do not have would end the process
there. binutils' objdump reads it; where there is none the test fails and says so.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastconv as fc
from fastconv import _kernels
from fastconv._kernels import cpu

KERNELS = Path(_kernels.__file__).parent
ROOT = Path(__file__).parent.parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
BUILT = [level for level in _kernels.LEVELS if importlib.util.find_spec(f"fastconv._kernels.{level}")]
MODULES = sorted(f.stem for f in (ROOT / "src/fastconv/_kernels").glob("*.pyx") if f.stem not in ("cpu", "memory"))
SUFFIXES = (".so", ".pyd")


def binaries(folder):
    return sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES)


def module(level, name):
    return Path(importlib.util.find_spec(f"fastconv._kernels.{level}.{name}").origin)


def test_openmp_was_built():
    assert cpu.has_openmp(), "this build has one thread only: see what setup.py said about OpenMP"
    assert cpu.openmp_threads() >= 1


def test_every_level_of_this_architecture_was_built():
    wanted = ("baseline", "avx2", "avx512") if X86 else ("neon",) if cpu.supports(0) and not X86 else ()
    assert set(BUILT) == set(wanted)
    assert set(fc.available_isas()) <= set(BUILT)


def test_every_level_has_every_module():
    assert {"conv", "optim", "pool", "tile", "winograd"} <= set(MODULES)
    for level in BUILT:
        assert sorted(f.name.partition(".")[0] for f in binaries(KERNELS / level)) == MODULES
        for name in MODULES:
            assert module(level, name).parent == KERNELS / level


def test_the_levels_that_run_import():
    for level in fc.available_isas():
        for name in MODULES:
            assert importlib.import_module(f"fastconv._kernels.{level}.{name}").__name__.endswith(f"{level}.{name}")


# ---------------------------------------------------------------- machine code
@pytest.fixture(scope="module")
def listing():
    """Disassembles a file; kept, for several tests look at each."""
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    assert tool, "this test reads machine code with objdump: install binutils (or LLVM)"
    kept = {}

    def disassemble(path):
        if path not in kept:
            done = subprocess.run([tool, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
            assert done.stdout.count("\n") > 1000, f"{tool} shows nothing of {path}"
            kept[path] = done.stdout
        return kept[path]

    return disassemble


REGISTERS = {"xmm": re.compile(r"%xmm\d"), "ymm": re.compile(r"%ymm\d"), "zmm": re.compile(r"%zmm\d")}
# What AVX-512 adds in narrow registers too: masks, and registers 16 to 31.
MASKED = re.compile(r"%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b")
# VEX instructions begin with v; legacy SSE ones do not.
VEX = re.compile(r"^\s*[0-9a-f]+:\s+v[a-z]", re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_no_level_has_instructions_above_it(listing, name):
    assert X86 == ("baseline" in BUILT)
    if not X86:  # NEON is part of every aarch64 processor; scalable vectors are not
        assert not re.search(r"\bz\d+\.[bhsd]\b", listing(module("neon", name)))
        return
    code = {level: listing(module(level, name)) for level in BUILT}
    found = {level: {r for r, pattern in REGISTERS.items() if pattern.search(text)} for level, text in code.items()}
    assert found["baseline"] == {"xmm"}
    assert not VEX.search(code["baseline"])
    assert not MASKED.search(code["baseline"])
    assert found["avx2"] == {"xmm", "ymm"}
    assert not MASKED.search(code["avx2"])
    assert "zmm" in found["avx512"]


@pytest.mark.parametrize("name", ["tile", "winograd", "depthwise"])
def test_products_are_fused_and_as_wide_as_the_level(listing, name):
    """The inner loops are multiply-adds over whole vectors: many of them, in both types."""
    for level, register in (("avx2", "ymm"), ("avx512", "zmm")) if X86 else ():
        text = listing(module(level, name))
        for kind in ("ps", "pd"):
            fused = re.findall(rf"vfn?m(?:add|sub)\d+{kind}\s.*%{register}", text)
            assert len(fused) > 100, f"{level}: {len(fused)}"
    if not X86:
        assert len(re.findall(r"\bfmla\b", listing(module("neon", name)))) > 100


def test_the_optimizers_contract_nothing(listing):
    """A fused multiply-add would round once where other levels round twice: other bits."""
    for level in BUILT:
        assert not re.search(r"\bvfn?m(?:add|sub)|\bfn?m(?:add|la|ls|sub)\b", listing(module(level, "optim")))


def test_what_runs_before_the_level_is_known_is_baseline(listing):
    for path in binaries(KERNELS):
        if X86:
            text = listing(path)
            assert not VEX.search(text), path
            assert not REGISTERS["ymm"].search(text), path


def test_no_binary_switches_denormals_off_when_loaded(listing):
    """-ffast-math or -Ofast in a link adds crtfastmath, whose set_fast_math writes the control register at load."""
    for path in [f for folder in (KERNELS, *(KERNELS / level for level in BUILT)) for f in binaries(folder)]:
        assert "set_fast_math" not in listing(path), path
        assert b"set_fast_math" not in path.read_bytes(), path


# ---------------------------------------------------------------- the package
def test_binaries_are_stripped_and_small():
    """The wheel holds them compressed; uncompressed they stay below 7 MB. Debug sections would be far more."""
    paths = [f for folder in (KERNELS, *(KERNELS / level for level in BUILT)) for f in binaries(folder)]
    assert sum(f.stat().st_size for f in paths) < 7e6
    for path in paths:
        content = path.read_bytes()
        assert b".debug_info" not in content, path
        assert b".symtab" not in content, path


def test_kernels_export_only_their_module():
    if sys.platform == "linux":
        tool = shutil.which("nm") or shutil.which("llvm-nm")
        assert tool, "this test lists symbols with nm: install binutils (or LLVM)"
        for level in BUILT:
            for name in MODULES:
                command = [tool, "-D", "--defined-only", module(level, name)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                symbols = {line.split()[-1] for line in done.stdout.splitlines()}
                assert f"PyInit_{name}" in symbols
                symbols.remove(f"PyInit_{name}")
                assert not [s for s in symbols if "tile" in s or "winograd_" in s or "transpose" in s]


def test_openmp_comes_from_a_library_that_is_shared():
    """Linked in statically, threadpoolctl would not find it, and a fork would not be ours alone to guard."""
    if sys.platform == "linux":
        tool = shutil.which("objdump") or shutil.which("llvm-objdump")
        assert tool, "this test reads what a library needs with objdump: install binutils (or LLVM)"
        for level in BUILT:
            done = subprocess.run([tool, "-p", module(level, "conv")], capture_output=True, text=True, check=True)
            assert re.search(r"NEEDED\s+lib(g?omp|iomp5)", done.stdout), level


def test_the_package_is_typed_and_says_its_version():
    assert (Path(fc.__file__).parent / "py.typed").exists()
    assert importlib.metadata.version("fastconv") == fc.__version__


def test_numpy_is_the_only_dependency():
    needs = importlib.metadata.requires("fastconv")
    assert [n for n in needs if "extra ==" not in n] == ["numpy>=2.0"]
    extras = set(importlib.metadata.metadata("fastconv").get_all("Provides-Extra"))
    assert extras >= {"demo", "test", "bench", "peers"}


def test_generated_c_stays_out_of_the_tree():
    """Cython writes to build/, so neither a wheel nor a source distribution can pick it up."""
    written = [f for f in KERNELS.rglob("*.c*") if f.suffix in (".c", ".cpp")]
    assert written == []


def test_the_build_says_what_the_tests_rely_on():
    """setup.py is where the flags are: no fast math, contraction off in optim alone, Cython told of free threading."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    flags = re.findall(r'"(-[^"]+)"', text)
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags)
    assert '"freethreading_compatible": True' in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["project"]["dependencies"] == ["numpy>=2.0"]


def test_a_build_without_openmp_warns_or_stops(tmp_path):
    """A compiler that cannot link OpenMP: a loud warning, and with FASTCONV_REQUIRE_OPENMP=1 an error."""
    code = """
import setup, sys
setup.runs_two_threads = lambda *flags: False
print(setup.openmp_flags())
"""
    for value, status in (("", 0), ("0", 0), ("1", 1)):
        env = {**os.environ, "FASTCONV_REQUIRE_OPENMP": value}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "OpenMP" in done.stderr
        assert ("FASTCONV_REQUIRE_OPENMP is set" in done.stderr) == (status == 1)
        assert (done.stdout.strip() == "([], [])") == (status == 0)
