"""The documentation: its code runs, its commands exist, every public name is in it, and the site needs no network."""

import contextlib
import copy
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import nbformat
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient

import jaxcircuits as jc
import weights_conversion
from jaxcircuits.cli import main as command_line
from tests.blocks import PAGES, ROOT, blocks, commands, same_text

pytestmark = pytest.mark.timeout(900)  # on a busy machine

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BENCHMARKS = {"benchmarks": importlib.import_module("benchmarks.__main__").main} | {
    f"benchmarks.{name}": importlib.import_module(f"benchmarks.{name}").main
    for name in ("comparison", "compact", "learned", "report", "visualisation")
}
LANGUAGES = {"python", "bash", "text"}
WITH_PYTHON = [
    page for page in PAGES if any(b.language == "python" and not b.mark.startswith("run by") for b in blocks(page))
]


def test_every_block_says_what_it_is():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{page}:{block.line} is {block.language!r}"
            assert re.fullmatch(r"(run|run by tests/\w+\.py|not run: .{10,}|benchmarks.*|)", block.mark), block
            if block.mark.startswith("run by"):
                assert Path(page).name in (ROOT / block.mark.removeprefix("run by ")).read_text(), block
        text = (ROOT / page).read_text()
        assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks(page)), f"{page} has a block in a list"


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, networks_once, tmp_path, monkeypatch):
    """From top to bottom, in one namespace, and print what stands below them."""
    networks_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in blocks(page):
        if block.language != "python" or block.mark.startswith(("not run", "run by")):
            continue
        # with the page's lines, for tracebacks; "from __future__" of this file must not apply
        code = compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.printed is not None:
            assert same_text(printed.getvalue(), block.printed), f"{page}:{block.line} prints {printed.getvalue()}"


@pytest.mark.parametrize("page", PAGES)
def test_bash_blocks_can_be_run(page):
    """Every command is one that there is, with options that it has."""
    for block in blocks(page):
        if block.language == "bash":
            for command in commands(block.code):
                check(command, f"{page}:{block.line}")


def check(command: str, where: str) -> None:
    """Raise if a command could not be run; nothing is."""
    words = shlex.split(command)
    program, arguments = Path(words[0]).name, words[1:]
    if arguments[:1] == ["-m"]:
        program, arguments = arguments[1], arguments[2:]
    if program in ("jaxcircuits", *BENCHMARKS):
        parse(command_line if program == "jaxcircuits" else BENCHMARKS[program], arguments, where)
    elif program == "mkdocs":
        from mkdocs.__main__ import cli

        parse(cli, arguments, where)
    elif program == "pip":
        for extras in re.findall(r"^\.\[(.*)\]$", "\n".join(arguments), re.MULTILINE):
            unknown = set(extras.split(",")) - set(PROJECT["optional-dependencies"])
            assert not unknown, f"{where}: there is no extra {unknown}"
    elif program == "pytest":
        for file in (word for word in arguments if word.endswith(".py")):
            assert (ROOT / file).exists(), f"{where}: there is no {file}"
    elif program == "jupyter":
        assert all(list(ROOT.glob(word)) for word in arguments if word.endswith(".ipynb")), where
    else:
        assert program in ("venv", "export", "apt-get"), f"{where}: what is {program}?"


def parse(command: click.Command, arguments: list[str], where: str) -> None:
    """As click would, down to the subcommand."""
    try:
        context = command.make_context(command.name, list(arguments))
        while isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            if not rest:
                assert command.invoke_without_command, f"{where}: what of {command.name}?"
                return
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            command, context = found, found.make_context(found.name, rest, parent=context)
    except click.ClickException as error:
        raise AssertionError(f"{where}: {error.format_message()}") from error


def test_commands_that_could_not_be_run_are_found():
    for bad in (
        "jaxcircuits extract alexnet features.6:56 --keeps .1",
        "jaxcircuits query DIR nearests features.3:1",
        "jaxcircuits compare alexnet features.6:56 --granularity layer",
        "python -m benchmarks --swift",
        "pip install '.[demos]'",
        "pytest tests/test_nothing.py",
        "rm -rf /",
    ):
        with pytest.raises(AssertionError, match="page"):
            check(bad, "page")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.mark == "run" for b in blocks(page))])
def test_marked_bash_blocks_run(page, networks_once, tmp_path, monkeypatch):
    networks_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.mark == "run":
            for command in commands(block.code):
                program, *arguments = shlex.split(command)
                assert program == "jaxcircuits"
                spelled = [
                    p for word in arguments for p in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
                ]
                result = CliRunner().invoke(command_line, spelled)
                assert result.exit_code == 0, f"{page}:{block.line}: {result.output}"


def test_options_in_the_text_exist():
    """Options in inline code belong to some command."""
    every = [c for command in (command_line, *BENCHMARKS.values()) for c in every_command(command)]
    options = {word for command in every for p in command.params for word in (*p.opts, *p.secondary_opts)}
    others = {"--nthreads"}  # of other programs
    for page in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            if not code.startswith((".venv/bin/", "pytest", "jupyter")):
                unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) - options - others
                assert not unknown, f"{page}: {unknown} in {code!r}"


def every_command(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        subs = [command.get_command(context, name) for name in command.list_commands(context)]
        return [command, *(c for sub in subs if sub for c in every_command(sub))]
    return [command]


def test_every_public_name_is_in_the_api():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(shown) == len(set(shown))
    for package in (jc, weights_conversion):
        wanted = {f"{package.__name__}.{name}" for name in package.__all__}
        assert not wanted - set(shown), "docs/api lacks these names"
        directly = {name for name in shown if name.startswith(f"{package.__name__}.") and name.count(".") == 1}
        assert not directly - wanted - {"jaxcircuits.measures", "jaxcircuits.nulls"}, "these names are not public"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as it is built; a warning of the builder is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    return folder


def test_site_is_built_whole(site):
    """Strictly, with every page, public name and formula, and nothing that another host would be asked for."""
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    wanted = {page[5:-3] for page in PAGES if page.startswith("docs/")}
    wanted |= {path.stem for path in ROOT.glob("*.md") if path.name != "README.md"}
    wanted |= {path.relative_to(ROOT / "docs").as_posix()[:-6] for path in ROOT.glob("docs/notebooks/*.ipynb")}
    assert set(pages) == {f"{page}.html" for page in wanted} | {"404.html"}
    api = "".join(text for name, text in pages.items() if name.startswith("api/"))
    for package in (jc, weights_conversion):
        for name in package.__all__:
            assert f'id="{package.__name__}.{name}"' in api
    formulas = pages["method.html"].count("<math")
    assert formulas > 50 and not re.search(r"\\[(\[]|\$\$|arithmatex", pages["method.html"])
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*?src=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]*?href=[\"']?([^\"' >]+)", text)
        assert not [url for url in loaded if url.startswith(("http", "//"))], name


@pytest.mark.slow
def test_site_works_from_disk(site, chromium):
    """In Chromium: pages load without a request to any host, say nothing on the console, and can be searched."""
    context = chromium.new_context(viewport={"width": 1300, "height": 850})
    asked, said = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    page = context.new_page()
    page.set_default_timeout(120_000)
    for name in ("index", "tutorial", "method", "notebooks/first_circuit", "api/judging"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("[...document.images].every((i) => i.loading == 'lazy' || (i.complete && i.naturalWidth))")
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").press_sequentially("effective_kernels")  # it listens to keys
    page.locator(".md-search-result__link", has_text="effective_kernels").first.wait_for(timeout=120_000)
    context.close()
    elsewhere = [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:", "about:"))]
    assert len(asked) > 20 and not elsewhere and not said


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_as_stored(path, tmp_path, monkeypatch):
    """Executed anew, every cell puts out what is stored with it: pictures, and words with their numbers."""
    if path.stem == "compare_criteria":
        monkeypatch.setenv("XLA_FLAGS", "")  # it computes for longer than it compiles
    stored = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(copy.deepcopy(stored), kernel_name="python3", resources=resources)
    found = client.execute()
    assert any(cell.get("outputs") for cell in stored.cells)
    for cell, again in zip(stored.cells, found.cells, strict=True):
        if cell.cell_type == "code":
            outputs, others = outcome(cell), outcome(again)
            assert set(outputs) == set(others), cell.source
            for kind in set(outputs) & {"stdout", "text/plain"}:
                assert same_shape(others[kind], outputs[kind]), f"{cell.source}\nputs out\n{others[kind]}"


def outcome(cell) -> dict[str, str]:
    """What a cell put out, by kind: `stdout`, and the types of what it shows."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        shown = output.get("data") or {output.get("name", ""): output.get("text", "")}
        for kind, content in shown.items():
            found[kind] = found.get(kind, "") + content
    return found


def same_shape(a: str, b: str) -> bool:
    """Whether two texts differ at most in numbers and blanks: of equal circuits another may come first."""
    return re.sub(r"[-\d.]+|\s+", "", a) == re.sub(r"[-\d.]+|\s+", "", b)
