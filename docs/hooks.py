"""What the documentation's builder does besides: formulas as MathML, notebooks as pages, files of the repository.

Pages are written for the repository's host, where their links and formulas work as they are. Here

- `$...$` and `$$...$$` become MathML when the site is built, so that no page needs a script or a font for them;
- a notebook becomes a page with the outputs that are stored in it, beside the notebook itself;
- search works from disk without the script that the theme would ask another host for;
- links that leave docs/ (`../CHANGELOG.md`, `../benchmarks/results/NAME.json`) lead to copies, and to the README home.
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parent.parent
RESULTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/results/*.json"))
COPIED = (*sorted(path.name for path in ROOT.glob("*.md") if path.name != "README.md"), *RESULTS)
ELSEWHERE, HERE = "https://unpkg.com/iframe-worker/shim", "assets/search_frame.js"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, and what the pages link to outside docs/."""
    for name in COPIED:
        text = (ROOT / name).read_text(encoding="utf-8")
        content = text.replace("](docs/", "](")
        files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for uri, content in page_of(Path(notebook.abs_src_path), notebook.src_uri).items():
            files.append(File.generated(config, uri, content=content))
    return files


def page_of(path: Path, uri: str) -> dict[str, str | bytes]:
    """The notebook's page and its pictures by their URIs."""
    stem = Path(uri).stem
    pictures: dict[str, str | bytes] = {}
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            shown = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in shown:
                name = f"{stem}_{len(pictures)}.png"
                pictures[f"{Path(uri).parent.as_posix()}/{name}"] = base64.b64decode(shown["image/png"])
                parts.append(f"![]({name})")
            elif "text/html" in shown:  # a table of pandas; the theme has its own style
                table = re.sub(r"<style.*?</style>|<tr style[^>]*(?=>)", _plain, shown["text/html"], flags=re.DOTALL)
                parts.append(re.sub(r'<table border="1" class="dataframe"', "<table", table))
            else:
                parts.append(f"```{{ .text .output }}\n{shown['text/plain'].rstrip()}\n```")
    note = f"[This page is a notebook]({Path(uri).name}){{: .notebook download }}"
    title, _, rest = parts[0].partition("\n")
    return {f"{uri.removesuffix('.ipynb')}.md": "\n\n".join([title, note, rest, *parts[1:]]), **pictures}


def _plain(found: re.Match[str]) -> str:
    return "<tr" if found[0].startswith("<tr") else ""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks lead to their pages, links out of docs/ to the copies."""
    markdown = re.sub(r"\]\((?!http)([^)\s]*?)\.ipynb\)(?!\{)", r"](\1.md)", markdown)
    markdown = markdown.replace("](../README.md)", "](index.md)")
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
