"""Build the kernels: each Cython source once for every instruction set, as fastconv._kernels.<level>.<name>.

Environment: FASTCONV_REQUIRE_OPENMP=1 turns a build without OpenMP into an error.
"""

import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

KERNELS = Path("src/fastconv/_kernels")
NAMES = ["tile", "conv", "planes", "columns", "grad_w", "winograd", "depthwise", "pool", "optim", "maps"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
MSVC = sys.platform == "win32"
BASELINE = "neon" if platform.machine().lower() in ("aarch64", "arm64") else "baseline"

# The psABI levels x86-64-v3 and v4: what an AVX2 or AVX-512 processor has besides.
LEVELS: dict[str, list[str]] = {BASELINE: []}
if X86:
    LEVELS["avx2"] = ["/arch:AVX2"] if MSVC else ["-march=x86-64-v3"]
    LEVELS["avx512"] = ["/arch:AVX512"] if MSVC else ["-march=x86-64-v4", "-mprefer-vector-width=512"]

if MSVC:
    COMMON, LINK = ["/O2", "/std:c11"], []
else:
    COMMON = ["-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
    COMMON += ["-fno-asynchronous-unwind-tables"]  # 4 % of the bytes: no exception passes through C
    # short runs are copied by vectors: a call to memcpy for each would cost more than the copy
    COMMON += ["-fno-tree-loop-distribute-patterns"] if sys.platform == "linux" else []
    LINK = ["-Wl,-x"] if sys.platform == "darwin" else ["-Wl,--strip-all"]

# Kernels that live by what the compiler makes of their loops. The others are written in vectors: -O3 makes them a sixth larger
# and no faster.
LOOPS = ["optim", "maps", "pool", "depthwise"]

OPENMP_PROBE = """
#include <omp.h>
#include <stdio.h>
int main(void) {
    int n = 0;
#pragma omp parallel num_threads(2)
    {
#pragma omp atomic
        n++;
    }
    printf("%d\\n", n);
    return 0;
}
"""


def openmp_flags() -> tuple[list[str], list[str]]:
    """Flags for the compiler and for the linker, found by compiling, linking and running a program with two threads."""
    if MSVC:
        candidates = [(["/openmp"], [])]
    elif sys.platform == "darwin":
        homebrew = "/opt/homebrew" if BASELINE == "neon" else "/usr/local"
        libomp = os.environ.get("LIBOMP_PREFIX", f"{homebrew}/opt/libomp")
        apple = (["-Xpreprocessor", "-fopenmp", f"-I{libomp}/include"], [f"-L{libomp}/lib", "-lomp"])
        candidates = [apple, (["-fopenmp"], ["-fopenmp"])]
    else:
        candidates = [(["-fopenmp"], ["-fopenmp"])]
    for compile_flags, link_flags in candidates:
        if runs_two_threads(compile_flags, link_flags):
            return compile_flags, link_flags
    message = "this compiler builds no working OpenMP program: fastconv would run on one thread only"
    if os.environ.get("FASTCONV_REQUIRE_OPENMP", "0") not in ("", "0"):
        raise SystemExit(f"error: FASTCONV_REQUIRE_OPENMP is set, but {message}")
    warnings.warn(f"\n{'*' * 80}\n{message}\n{'*' * 80}", stacklevel=1)
    return [], []


def runs_two_threads(compile_flags: list[str], link_flags: list[str]) -> bool:
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(OPENMP_PROBE)
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
            compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=link_flags)
            program = next(p for p in (Path(folder, "probe"), Path(folder, "probe.exe")) if p.exists())
            answer = subprocess.run([program], capture_output=True, timeout=60, check=True, text=True).stdout
        except Exception:  # whatever a compiler, a linker or the program itself may do wrong: no OpenMP
            return False
    return answer.strip() == "2"


def kernel_flags(level: str, name: str) -> list[str]:
    if MSVC:
        return LEVELS[level]
    # The baseline is for processors without AVX2: a third of its bytes is worth 5 % of its speed.
    optimise = ["-Os"] if level == "baseline" else ["-O3"] if name in LOOPS else ["-O2", "-ftree-vectorize"]
    # Contraction would give the optimizers other bits on processors with fused multiply-add.
    return [*optimise, "-ffp-contract=" + ("off" if name == "optim" else "fast"), *LEVELS[level]]


def extension(name: str, source: str, flags: list[str], openmp: tuple[list[str], list[str]]) -> Extension:
    made = cythonize(
        [Extension(name, [str(KERNELS / source)], depends=[str(h) for h in sorted(KERNELS.glob("*.h"))])],
        build_dir=str(Path("build/cython", name)),
        include_path=["src"],
        compiler_directives={
            "language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True,
            "initializedcheck": False, "freethreading_compatible": True, "binding": False, "auto_pickle": False,
        },
    )[0]
    # Only now: cythonize merges the flags of a source that it has met before into the next call's.
    made.include_dirs = [np.get_include(), str(KERNELS)]
    made.define_macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
    made.extra_compile_args = COMMON + flags + openmp[0]
    made.extra_link_args = LINK + openmp[1]
    return made


def extensions() -> list[Extension]:
    openmp = openmp_flags()
    made = [extension(f"fastconv._kernels.{name}", f"{name}.pyx", [], openmp) for name in ("cpu", "memory")]
    for level in LEVELS:
        for name in NAMES:
            made.append(extension(f"fastconv._kernels.{level}.{name}", f"{name}.pyx", kernel_flags(level, name), openmp))
    return made


class Build(build_ext):
    """Compiles as many extensions at a time as there are processors; makes the folders of an in-place build."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        if self.inplace:
            for level in LEVELS:
                (KERNELS / level).mkdir(exist_ok=True)
        super().run()


class Source(sdist):
    """Adds what setuptools does not find: the Cython sources, which it takes for C, tests, bench and the changelog."""

    def make_distribution(self) -> None:
        files = [p for folder in ("tests", "bench") for p in Path(folder).rglob("*") if p.is_file()]
        files += [Path("CHANGELOG.md"), *KERNELS.glob("*.pyx"), *KERNELS.glob("*.pxd")]
        self.filelist.extend([str(p) for p in files if p.suffix != ".pyc"])
        super().make_distribution()


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "sdist": Source})
