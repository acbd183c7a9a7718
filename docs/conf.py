"""Sphinx configuration; everything shown about the interface comes from the docstrings."""

from importlib.metadata import version as version_of

project = "qcthreads"
author = "The qcthreads developers"
copyright = f"2026, {author}"
version = release = version_of("qcthreads")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "programs/parts"]  # which the pages of the programs are made of
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "furo"
html_title = f"qcthreads {version}"
