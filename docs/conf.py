"""Configuration of the documentation; `make docs` builds it, and a warning is an error."""

import builtins
import os
import sys
from importlib import import_module
from importlib.metadata import metadata

info = metadata("stcontrast")
project = info["Name"]
author = info["Author"]
project_copyright = f"2026, {author}"
version = release = info["Version"]
repository_url = dict(line.split(", ", 1) for line in info.get_all("Project-URL", [])).get("Source")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "scverse_misc.sphinx_ext",
    "scverse_doc.xref_overrides",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxcontrib.katex",
    "sphinxext.opengraph",
]
needs_sphinx = "8.1"
default_role = "literal"
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # the API pages are .rst
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# -- The API, from docstrings ------------------------------------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "groupwise"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_rtype = True
napoleon_use_param = True
napoleon_use_ivar = True  # attributes of dataclasses get entries of their own
typehints_defaults = "braces"
always_use_bars_union = True


def public_names() -> dict[str, str]:
    """Where an object is defined → where it is documented: a type that is public links to its page."""
    names = {}
    for part in ("datasets", "models", "methods", "metrics", "pl", "pp", "tl"):
        module = import_module(f"stcontrast.{part}")
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            if hasattr(thing, "__qualname__"):
                names.setdefault(f"{thing.__module__}.{thing.__qualname__}", f"stcontrast.{part}.{name}")
    return names


xref_overrides = public_names()

# -- Markdown and notebooks --------------------------------------------------------------------------------------------

myst_heading_anchors = 6
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_admonition", "html_image"]
# Notebooks are committed with their output, so that a build needs no data and is quick.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True

# Formulas are MathML, which browsers draw by themselves: no style sheet and no font from elsewhere.
katex_options = "output: 'mathml', throwOnError: true"
katex_css_path = "katex-math.css"

# -- Links -------------------------------------------------------------------------------------------------------------

other_projects = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "dask": "https://docs.dask.org/en/stable/",
    "geopandas": "https://geopandas.org/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "scvi": "https://docs.scvi-tools.org/en/stable/",
    "shapely": "https://shapely.readthedocs.io/en/stable/",
    "skimage": "https://scikit-image.org/docs/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "spatialdata_plot": "https://spatialdata.scverse.org/projects/plot/en/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "xarray": "https://docs.xarray.dev/en/stable/",
}
# Links to their pages need the network at build time. Inventories are fetched only on Read the Docs or with DOCS_ONLINE=1;
# elsewhere the build has no such links.
online = "READTHEDOCS" in os.environ or os.environ.get("DOCS_ONLINE") == "1"
intersphinx_mapping = {name: (url, None) for name, url in other_projects.items()} if online else {}

# A link to a missing object of this package is an error; links to other projects may be outdated.
nitpicky = True
_others = "|".join(
    sorted(
        {
            *other_projects,
            *sys.stdlib_module_names,
            "lazyslide",
            "mudata",
            "pydantic",
            "PIL",
            "timm",
            "tqdm",
            "wsidata",
            "zarr",
        }
    )
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({_others})(\..*)?"),
    (r"py:.*", "|".join(name for name in dir(builtins) if not name.startswith("_"))),
    # A type that is not public may be in the signature of a method that users do not call.
    (r"py:(class|type)", r"stcontrast\.((\w+\.)*_\w+|nn)\..*"),
]

# -- HTML --------------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
# the sidebar has a search already
html_theme_options: dict[str, object] = {
    "path_to_docs": "docs/",
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "logo": {"text": project, "alt_text": ""},
}
if repository_url:
    html_theme_options |= {"repository_url": repository_url, "use_repository_button": True}
ogp_site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
ogp_social_cards = {"enable": False}
