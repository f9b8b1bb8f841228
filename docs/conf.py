"""How the documentation is built:  pip install "fastconv[docs]" && sphinx-build -W -n docs docs/_build/html

The build first runs the Python of all pages (run.py), which also draws their pictures.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import fastconv

project = "fastconv"
author = "The fastconv developers"
copyright = author
release = version = fastconv.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
highlight_language = "none"
default_role = "py:obj"
nitpicky = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say more: shapes
numpydoc_show_class_members = False
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fastconv {release}"
html_show_sphinx = False
html_copy_source = False


def run_pages(app: Sphinx) -> None:
    """Run the pages' code in a process of its own; a page that fails ends the build."""
    if subprocess.run([sys.executable, "-W", "error", str(Path(__file__).with_name("run.py"))]).returncode:
        raise SphinxError("the Python of a page failed")


def resolve_by_last_name(app: Sphinx, env: Any, node: Any, shown: Any) -> Any:
    """`conv2d` in a docstring of any module links to fastconv.conv2d; other names, such as a parameter's, are code."""
    if node.get("refdomain") != "py" or node["reftype"] != "obj":
        return None
    wanted = node["reftarget"]
    found = {entry[1].node_id: entry for entry in env.domains["py"].find_obj(env, "", None, wanted, None, 1)}
    if len(found) != 1 or (wanted.islower() and "." not in wanted and wanted not in fastconv.__all__):
        return shown
    name, entry = next(iter(found.values()))
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, name)


def check_api(app: Sphinx, env: Any) -> None:
    """Every public name has its place in the API."""
    known = set(env.domains["py"].objects) | set(env.domains["py"].modules)
    for name in fastconv.__all__:
        value = getattr(fastconv, name)
        module = getattr(value, "__module__", "")
        if not {f"fastconv.{name}", f"{module}.{name}"} & known:
            logging.getLogger(__name__).warning("fastconv.%s has no place in the API", name)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", run_pages)
    app.connect("missing-reference", resolve_by_last_name)
    app.connect("env-check-consistency", check_api)
