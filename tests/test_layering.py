"""How the files hang together: imports go down only, private kernels stay private, what is public is explained.

Read from the source by `ast`, so an import inside a function counts as well.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
import types
import typing
from pathlib import Path

import pytest

import fastconv as fc

PACKAGE = Path(fc.__file__).parent
MODULES = sorted(m.name for m in pkgutil.iter_modules([str(PACKAGE)]) if m.name not in ("_kernels", "__main__"))
# A module may import those in the rows above its own, and of its own row those to its left.
ORDER = """
    checks
    geometry extras
    reference _kernels
    runtime
    costs
    planning
    ops pooling
    base
    weighted weightless
    schedules optim losses layers
    models
    data history deconvnet checkpoints batches
    plots report
    training
    runs race
    __main__
"""
ROWS = [row.split() for row in ORDER.strip().splitlines()]
RANK = {name: (i, j) for i, row in enumerate(ROWS) for j, name in enumerate(row)}
# The only modules that may speak to compiled code; the others go through them.
KERNEL_USERS = {"runtime", "costs", "planning", "ops", "pooling", "optim", "losses", "base"}
# numpy and the standard library are imported when fastconv is; extras only where something needs them.
EXTRAS = {"matplotlib", "tqdm", "mlxtend", "safetensors", "PIL", "torch"}


def imports(path):
    """(name of the module of this package or of another one, whether it happens at import) of a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node) for top in ast.walk(tree) if isinstance(top, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(top)
    }
    checked = {
        id(node) for top in ast.walk(tree) if isinstance(top, ast.If) and "TYPE_CHECKING" in ast.dump(top.test)
        for node in ast.walk(top)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in guarded
        elif isinstance(node, ast.ImportFrom):
            base = "fastconv" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "fastconv":
                for alias in node.names:
                    yield f"fastconv.{alias.name}", id(node) not in guarded
            else:
                yield module, id(node) not in guarded


def internal(path):
    """Modules of this package that a file imports; a public name taken from the package itself is ``*``."""
    for name, _ in imports(path):
        if name == "fastconv":
            yield "*"
        elif name.startswith("fastconv."):
            part = name.split(".")[1]
            yield part if part in RANK else "*"


def test_every_module_has_a_place():
    assert {*MODULES, "_kernels", "__main__"} <= set(RANK)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    """`import fastconv` itself would make a circle, but for `__version__` inside a function."""
    for other in internal(PACKAGE / f"{name}.py"):
        if other == "*":
            names = {n for n, at_import in imports(PACKAGE / f"{name}.py") if n.count(".") == 1 and not at_import}
            assert "fastconv.__version__" in names, f"{name} imports the whole package"
        else:
            assert RANK[other] < RANK[name], f"{name} imports {other}, which stands above it"


def test_kernels_import_nothing_above_them():
    for path in (PACKAGE / "_kernels").rglob("*.py"):
        assert set(internal(path)) <= {"_kernels"}, path
    source = Path(__file__).parent.parent / "src/fastconv/_kernels"
    for path in source.glob("*.pyx"):
        lines = path.read_text(encoding="utf-8").splitlines()
        taken = [line for line in lines if line.split()[:1] in (["from"], ["import"]) and "fastconv" in line]
        assert all(line.split()[1].startswith("fastconv._kernels") for line in taken), path


@pytest.mark.parametrize("name", MODULES)
def test_private_kernels_stay_private(name):
    if "_kernels" in set(internal(PACKAGE / f"{name}.py")):
        assert name in KERNEL_USERS


@pytest.mark.parametrize("name", [*MODULES, "__main__"])
def test_extras_are_imported_where_they_are_used(name):
    at_import = {module.partition(".")[0] for module, top in imports(PACKAGE / f"{name}.py") if top}
    assert not at_import & EXTRAS


# ---------------------------------------------------------------- what is public
def public(module):
    """(name, thing) of what a module offers: its own functions and classes without a leading underscore."""
    for name, thing in vars(module).items():
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__:
            yield name, thing


def members(thing):
    """(name, function) of a class's own public methods and properties."""
    for name, member in vars(thing).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and isinstance(inner, types.FunctionType):
            yield name, inner


def explained(thing, name):
    """Whether a class's method says what it does, itself or where it overrides one that does."""
    return any(inspect.getdoc(vars(c)[name]) for c in thing.__mro__ if name in vars(c))


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name):
    module = importlib.import_module(f"fastconv.{name}")
    assert module.__doc__
    missing = [n for n, thing in public(module) if not inspect.getdoc(thing)]
    for n, thing in public(module):
        if inspect.isclass(thing):
            missing += [f"{n}.{m}" for m, _ in members(thing) if not explained(thing, m)]
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_typed(name):
    """Each argument and each result of public functions and methods is annotated."""
    module, missing = importlib.import_module(f"fastconv.{name}"), []
    functions = [(n, f) for n, f in public(module) if inspect.isfunction(f)]
    functions += [(f"{n}.{m}", f) for n, c in public(module) if inspect.isclass(c) for m, f in members(c)]
    for n, function in functions:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        if signature.return_annotation is signature.empty or any(p.annotation is p.empty for p in parameters):
            missing.append(n)
    assert missing == []


CONTRACT = """
    ConvGeometry GeometryError conv2d conv2d_grad_x conv2d_grad_w conv2d_backward conv_transpose2d max_pool2d
    max_pool2d_grad avg_pool2d avg_pool2d_grad im2col col2im explain set_num_threads get_num_threads num_threads isa
    available_isas use_isa show_config set_precision get_precision
""".split()


def test_the_package_offers_what_the_contract_names():
    assert [name for name in CONTRACT if not hasattr(fc, name)] == []
    offered = {n for n, thing in vars(fc).items() if not n.startswith("_") and not inspect.ismodule(thing)}
    foreign = {n for n in offered if not getattr(getattr(fc, n), "__module__", "").startswith("fastconv")}
    assert foreign == set(), "names of other packages leak out"
    assert all(inspect.getdoc(getattr(fc, name)) for name in CONTRACT)
    for name in ("optim", "schedules", "layers", "losses", "models", "training", "data", "plots"):
        assert inspect.ismodule(importlib.import_module(f"fastconv.{name}"))


def test_convolutions_take_their_options_by_name():
    """S=2 can be read; a bare 2 in the fifth place cannot."""
    shared = {"S": 1, "P": 0, "dilation": 1, "groups": 1, "layout": "NHWC"}
    for name in ("conv2d", "conv2d_grad_x", "conv2d_grad_w", "conv2d_backward", "conv_transpose2d"):
        parameters = inspect.signature(getattr(fc, name)).parameters
        assert {n: parameters[n].default for n in shared} == shared, name
        assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in shared), name
    assert typing.get_type_hints(fc.get_num_threads) == {"return": int}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    """As a reader would type them, in a folder of their own; settings they change are put back."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"fastconv.{name}")
    before = fc.get_precision(), fc.isa()
    with fc.num_threads(2):
        failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert (fc.get_precision(), fc.isa()) == before


def test_the_functions_of_the_contract_have_examples():
    finder = doctest.DocTestFinder(recurse=False)
    functions = [n for n in CONTRACT if "2d" in n or "2im" in n or "2col" in n]
    without = [n for n in functions if not any(t.examples for t in finder.find(getattr(fc, n), n))]
    assert without == []
