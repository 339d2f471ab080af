"""The README does what it says: its Python example runs, its commands are the ones that CI runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import Circuit

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    r = np.array(capsys.readouterr().out.strip("[] \n").split(), float)
    assert r.shape == (3,) and (r > 0.3).all()
    kept = {path.name: Circuit.load(path).manifest["kept"] for path in (tmp_path / "circuits").iterdir()}
    assert len(kept) == 6 and kept["features.6_56.snip.keep0.1.safetensors"] == 1267


def test_commands_are_one_line_each():
    blocks = [block.strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)]
    assert [len(block) for block in blocks] == [1, 1]
    assert "jaxcircuits extract alexnet" in blocks[0][0] and shlex.split(blocks[1][0])[-2:] == [
        ".venv/bin/pytest",
        "-q",
    ]
