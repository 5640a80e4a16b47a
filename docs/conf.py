"""The settings of Sphinx for `make docs`: Markdown pages by MyST, API pages from the docstrings, the theme Furo.

The pages stay readable where Markdown is shown without Sphinx, as on GitHub: a link to another file of the repository
is an ordinary relative link, which `fit_links` makes fit the built pages. The README is the first of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from rmcla_fast import __version__

FOLDER = Path(__file__).resolve().parent
LEAVING_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")  # [text](../path#heading)
PAGES_OF = {"../README.md": "index.md", "../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}

project = "rmcla_fast"
release = version = __version__
copyright = "the authors of rmcla_fast, under the MIT license"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "rmcla_fast"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
highlight_language = "none"  # the literal blocks in docstrings are formulas
pygments_dark_style = "github-dark"
smartquotes = False  # the pages quote commands and sentences of the program as they are

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch.nn.Module say nothing about ours
autodoc_typehints = "signature"
default_role = "literal"  # `name` in a docstring
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are a list, like parameters
python_use_unqualified_type_names = True

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def inline_formula(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line as MathML, which browsers show without a script or the network."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed_formula(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own as MathML."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def include_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Put a file of the repository's root in place of its `{include}`, with its links seen from docs/."""

    def text_of(include: re.Match[str]) -> str:
        text = (FOLDER / include[1]).read_text(encoding="utf-8")
        seen_from_docs = re.sub(r"\]\((?!https?:|#)", "](../", text)
        return seen_from_docs.replace("](../docs/", "](")

    source[0] = re.sub(r"^```\{include\} (\S+)\n```$", text_of, source[0], flags=re.MULTILINE)


def fit_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Make links that leave docs/ fit the built pages.

    A link to the README, to CONTRIBUTING.md or to CHANGELOG.md leads to the page that has their content. A folder and
    another Markdown file have no page, so their path is printed instead. A link to any other file downloads it. In a
    heading it is text, since Sphinx cannot put a download into its table of contents.
    """

    def fitting(link: re.Match[str]) -> str:
        text, path, anchor = link.groups(default="")
        target = (FOLDER / name).parent.joinpath(path).resolve()
        if path in PAGES_OF:
            return f"[{text}]({PAGES_OF[path]}{anchor})"
        if target.is_relative_to(FOLDER) or not (target.is_dir() or target.suffix == ".md"):
            return link[0]
        shown = target.relative_to(FOLDER.parent).as_posix()
        return f"`{shown}`" if shown.endswith(text.strip("`")) else f"{text} (`{shown}`)"

    text = re.sub(r"^#+ .*", lambda heading: LEAVING_LINK.sub(r"\1", heading[0]), source[0], flags=re.MULTILINE)
    source[0] = LEAVING_LINK.sub(fitting, text)


def keep_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Begin the docstring of a property with an empty comment. Napoleon takes words before a colon for its type."""
    if what == "property":
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Add the formulas, the included files and the links to Sphinx."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("source-read", include_files, priority=400)
    app.connect("source-read", fit_links)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
