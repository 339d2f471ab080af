"""One small network in Flax and in PyTorch with the same weights, and five images that are not square."""

import atexit
import functools
import os
import shutil
import signal
import tempfile
from typing import NamedTuple

# Most of the time goes into compiling. Without LLVM's optimizations it is a third less, and with the older emitters a
# third of that; a version of JAX that has no others takes no notice of the second flag. (Read when jax starts; a value
# of one's own, even an empty one, takes the place of both.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
# One cache for all processes of a run: the first of them to come here makes it, and the others inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxcircuits-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # umap-learn takes longer to compile than to run uncompiled

import hypothesis
import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

import jaxcircuits as jc
from jaxcircuits import loading
from tests.twins import Small, TorchSmall, random_variables
from weights_conversion import to_torch

# A shell that starts the tests in the background has them ignore interrupts, and so would the processes they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("jaxcircuits", deadline=None)  # the first example compiles
hypothesis.settings.load_profile("jaxcircuits")


CACHE = {name: getattr(jax.config, name)
         for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")}  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache_left():
    """A command, or a page, says where its process keeps compiled programs; the tests after it keep none there."""
    yield
    if any(getattr(jax.config, name) != value for name, value in CACHE.items()):
        for name, value in CACHE.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


class Pair(NamedTuple):
    model: jc.Model
    torch: torch.nn.Module
    images: np.ndarray


@pytest.fixture(scope="session")
def small() -> Pair:
    options = {"train": False}
    variables = random_variables(Small(), (1, 13, 13, 3), **options)
    model = jc.Model(Small(), variables, name="small", apply_options=options, input_size=13)
    twin = TorchSmall().eval()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in to_torch(variables).items()})
    images = np.random.default_rng(1).standard_normal((5, 13, 11, 3), np.float32)
    return Pair(model, twin, images)


@pytest.fixture(scope="session")
def networks_once():
    """Takes a MonkeyPatch, under which pretrained networks are loaded once for all tests, and compiled once, too."""
    real, once = loading._load, functools.cache(loading._load)

    def load(name, weights, *how):
        return (once if weights == "lpips" else real)(name, weights, *how)

    return lambda patch: patch.setattr(loading, "_load", load)


@pytest.fixture(scope="session")
def alexnet() -> jc.Model:
    """With torchvision's pretrained convolutions."""
    return jc.load("alexnet")


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, one for all tests of pages."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "pages are tested in Chromium, which is not here: apt-get install chromium, or set CHROMIUM to its path; "
            f"looked for {', '.join(names)}"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Pages:
    """Opens pages from disk. They must ask no network for anything, and say nothing on the console but what holds
    `expected`, if a test sets it."""

    expected = None

    def __init__(self, context, folder):
        self.context, self.folder, self.said, self.asked, self.paths = context, folder, [], [], []

    def __call__(self, html):
        path = self.folder / f"page{len(self.paths)}.html"
        path.write_text(html, encoding="utf-8")
        self.paths.append(path.as_uri())
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())
        return page


@pytest.fixture
def opened(chromium, tmp_path_factory):
    """`opened(html)` is a page in Chromium."""
    context = chromium.new_context(viewport={"width": 1300, "height": 850}, color_scheme="light")
    pages = Pages(context, tmp_path_factory.mktemp("pages"))
    yield pages
    context.close()
    if pages.expected is None:
        assert not pages.said
    else:
        assert pages.said and all(pages.expected in words for words in pages.said)
    assert [url for url in pages.asked if not url.startswith(("data:", "blob:"))] == pages.paths
