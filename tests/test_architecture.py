"""Data flows one way: no two rooms need each other, and ARCHITECTURE.md tells of all of them."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rooms(package: str) -> dict[str, Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def needed(path: Path, known: dict[str, Path]) -> set[str]:
    """The rooms that a file imports at once; not those named for type checkers or imported when a function runs."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


def test_arrows_run_one_way():
    known = rooms("jaxcircuits") | rooms("weights_conversion")
    graph = {name: needed(path, known) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(known)
    order = list(TopologicalSorter(graph).static_order())  # a CycleError names those that need each other
    assert order.index("jaxcircuits.taps") < order.index("jaxcircuits.scoring") < order.index("jaxcircuits.jobs")
    for name, others in graph.items():
        if not name.startswith(("jaxcircuits.cli", "jaxcircuits.__main__")):
            assert not {other for other in others if other.startswith("jaxcircuits.cli")}, name
        if name.startswith("weights_conversion"):
            assert not {other for other in others if other.startswith("jaxcircuits")}, name
    hooks = [name for name, path in known.items() if "intercept_methods" in path.read_text()]
    assert "jaxcircuits.taps" in hooks and not {"jaxcircuits.gradients", "jaxcircuits.scoring"} & set(hooks)


def test_every_room_is_told_of():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = {name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w/]+)`", line)}
    for path in (ROOT / "jaxcircuits").iterdir():
        name = f"{path.name}/" if (path / "__init__.py").exists() else path.stem if path.suffix == ".py" else None
        if name and not name.startswith("__"):
            assert name in table, name
