"""What the documentation's builder does besides: formulas as MathML, notebooks as pages, files of the repository.

Pages are written for the repository's host, where their links and formulas work as they are. Here

- `$...$` and `$$...$$` become MathML when the site is built, so that no page needs a script or a font for them;
- a notebook becomes a page with the outputs that are stored in it, beside the notebook itself;
- search works from disk without the script that the theme would ask another host for;
- links that leave docs/ (`../CHANGELOG.md`, `../benchmarks/results/NAME.json`) lead to copies.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
COPIED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("benchmarks/results/*.json")),
)
ELSEWHERE, HERE = "https://unpkg.com/iframe-worker/shim", "assets/search_frame.js"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, and what the pages link to outside docs/."""
    for name in COPIED:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for uri, content in page_of(Path(notebook.abs_src_path), notebook.src_uri).items():
            files.append(File.generated(config, uri, content=content))
    return files


def page_of(path: Path, uri: str) -> dict[str, str | bytes]:
    """The notebook's page and its pictures by their URIs."""
    stem = uri.removesuffix(".ipynb")
    made, resources = MarkdownExporter().from_notebook_node(
        nbformat.read(path, as_version=4), {"output_files_dir": Path(stem).name}
    )
    made = re.sub(r"^((?: {4}.*\n|\n)+)", _output, made, flags=re.MULTILINE)
    note = f"\n[This page is a notebook]({Path(uri).name}){{: .notebook download }}\n"
    title, _, rest = made.lstrip().partition("\n")
    pictures = {f"{Path(uri).parent.as_posix()}/{name}": data for name, data in resources["outputs"].items()}
    return {f"{stem}.md": f"{title}\n{note}{rest}", **pictures}


def _output(found: re.Match[str]) -> str:
    """What a cell has printed, in a fence that says so; nbconvert indents it."""
    lines = [line[4:] for line in found[1].strip("\n").splitlines()]
    return "\n```{ .text .output }\n" + "\n".join(lines) + "\n```\n\n" if any(lines) else found[0]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks lead to their pages, links out of docs/ to the copies."""
    markdown = re.sub(r"\]\((?!http)([^)\s]*?)\.ipynb\)(?!\{)", r"](\1.md)", markdown)
    for name in COPIED:
        markdown = markdown.replace(f"](../{name})", f"]({name})")
    return markdown


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return convert(html.unescape(found[3]), display=display)

    return FORMULA.sub(formula, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Scripts come from the site itself."""
    return output.replace(ELSEWHERE, get_relative_url(HERE, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    return output_content.replace(ELSEWHERE, HERE)
