"""What an installed wheel must do, run by `.ci/wheel` with the wheel's own Python and nothing else beside it:

python installed.py core      without extras: what needs none works, all else says in one sentence which to install
python installed.py extras    with demo, maps and atlas: circuits, their pages and an atlas of the pretrained AlexNet
python installed.py more      with onnx and cluster too: the way to PyTorch and ONNX, and an atlas by workers of Dask
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from jaxcircuits.cli import main


def run(*arguments: str) -> Result:
    """In this process, which has started, as far as it may: the first command of all is the real one."""
    return CliRunner().invoke(main, arguments)


def works(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, (arguments, done.stderr, done.exception)
    print("works:", *arguments, flush=True)
    return done.stdout


def lacks(extra: str, *arguments: str) -> None:
    """The command ends in one sentence that names the extra, and leaves nothing behind."""
    before = set(Path().rglob("*"))
    done = run(*arguments)
    last = (done.stderr.splitlines() or [""])[-1]
    assert done.exit_code == 2 and last.startswith("Error: ") and f"jaxcircuits[{extra}]" in last, (arguments, done)
    assert "Traceback" not in done.stderr and set(Path().rglob("*")) == before, (arguments, done.stderr)
    print(f"lacks {extra}:", *arguments, flush=True)


def core() -> None:
    rng = np.random.default_rng(0)
    np.save("images.npy", rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    given = ("--weights", "random", "--images", "images.npy")
    circuit = "circuits/alexnet/features.3_5.snip.keep0.5.safetensors"
    command = Path(sys.executable).with_name("jaxcircuits")
    shown = subprocess.run([command, "info", "alexnet"], capture_output=True, text=True, check=True).stdout
    assert "features.10" in shown and "subcircuits" in works("--help") and "resnet50" in works("info")
    works("extract", "alexnet", "features.3:5", *given, "--scores", "--keep", ".5")
    (found,) = json.loads(works("evaluate", circuit, "--images", "images.npy", "--json"))["circuits"]
    assert -1 <= found["correlation"] <= 1
    works("diagram", circuit, "--format", "svg,png,pdf", "--pictures", "none")
    works("compare", "alexnet", "features.0:1", *given, "--test-images", "images.npy", "--criteria", "snip,random",
          "--keep", ".5,.1")  # fmt: skip
    works("convert", "alexnet", "--weights", "random", "--out", "alexnet.safetensors")
    works("convert", "alexnet", "--weights", "alexnet.safetensors", "--out", "alexnet.orbax")
    works("extract", "alexnet", "features.0:0", "--weights", "alexnet.orbax", "--images", "images.npy")

    lacks("demo", "extract", "alexnet", "features.3:5")
    lacks("demo", "extract", "alexnet", "features.3:5", "--weights", "random")
    lacks("pages", "diagram", circuit, "--pictures", "none", "--format", "html", "--out", "pages")
    lacks("pages", "diagram", circuit, "--pictures", "none", "--format", "svg,json", "--out", "pages")
    lacks("pages", "report", circuit, "--pictures", "none", "--out", "pages")
    lacks("maps", "subcircuits", "alexnet", "features.3:5", *given, "--out", "parts")
    lacks("maps", "subcircuits", "alexnet", "features.3:5", *given, "--out", "parts", "--no-map", "--groups",
          "cluster:2")  # fmt: skip
    lacks("atlas", "atlas", "alexnet", "features.0", *given, "--out", "atlas")
    lacks("cluster", "atlas", "alexnet", "features.0", *given, "--out", "atlas", "--dask", "tcp://127.0.0.1:1")
    lacks("convert", "export", circuit, "--out", "files")
    lacks("convert", "convert", "alexnet", "--weights", "random", "--out", "alexnet.pth")
    lacks("convert", "extract", "alexnet", "features.0:0", "--weights", "torchvision", "--images", "images.npy")


def extras() -> None:
    (found,) = json.loads(works("extract", "alexnet", "features.6:56", "--keep", ".05", "--scores", "--json"))[
        "circuits"
    ]
    assert found["correlation"] > 0.9, found
    circuit = "circuits/alexnet/features.6_56.snip.keep0.05.safetensors"
    works("diagram", circuit, "--pictures", "none", "--format", "html,svg,graphml,json")
    works("report", circuit, "--pictures", "none")
    works("subcircuits", "alexnet", "features.3:5", "--granularity", "filter", "--images", "photos:a")
    works("atlas", "alexnet", "features.0:0-3", "--images", "photos:a", "--limit", "2", "--out", "atlas")
    works("query", "atlas")
    works("query", "atlas", "clusters", "--keep", ".1")


def more() -> None:
    import onnxruntime
    import torch
    from torchvision_oracle import torchvision

    import jaxcircuits as jc

    torchvision()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.save("images.npy", images)
    works("extract", "alexnet", "features.6:56", "--keep", ".05", "--images", "images.npy")
    stem = "features.6_56.snip.keep0.05"
    circuit = f"circuits/alexnet/{stem}.safetensors"
    works("export", circuit, "--compact", "--onnx", "--out", ".")
    works("export", circuit, "--out", ".")
    x = np.random.default_rng(1).standard_normal((2, 3, 224, 224), np.float32)
    (feature,) = onnxruntime.InferenceSession(f"{stem}.compact.onnx").run(None, {"images": x})
    with torch.no_grad():
        theirs = torch.export.load(f"{stem}.compact.pt2").module()(torch.from_numpy(x)).numpy()
    ours = np.asarray(jc.compact(jc.load("alexnet"), jc.Circuit.load(circuit))(x.transpose(0, 2, 3, 1)))
    for found in (feature, theirs):
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), ours, atol=1e-5 * np.abs(ours).max())
    works("convert", "alexnet", "--weights", "random", "--out", "alexnet.pth")
    works("import", f"{stem}.masks.pt", "alexnet", "features.6:56", "--images", "images.npy", "--out", "theirs")

    local = ("--host", "127.0.0.1", "--no-dashboard")
    asked = ("atlas", "alexnet", "features.0:0-3", "--images", "images.npy", "--chunk", "2")
    with ExitStack() as running, open("cluster.log", "wb") as log:

        def runs(name: str, *arguments: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, *local]
            process = running.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            running.callback(process.kill)

        there = Path("scheduler.json")
        runs("scheduler", "--port", "0", "--scheduler-file", str(there))
        end = time.monotonic() + 300
        while not (there.exists() and there.read_text().strip()):
            assert time.monotonic() < end, Path("cluster.log").read_text()
            time.sleep(0.1)
        address = json.loads(there.read_text())["address"]
        runs("worker", address, "--no-nanny", "--nthreads", "1")
        works(*asked, "--dask", address, "--out", "atlas")
    works("atlas", "--verify", "atlas")


if __name__ == "__main__":
    stage = {"core": core, "extras": extras, "more": more}[sys.argv[1]]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("XDG_CACHE_HOME", cache)
        os.chdir(folder)
        stage()
        os.chdir(cache)
