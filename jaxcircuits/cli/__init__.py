"""The command line: parses, calls public functions, prints. Bad input is one sentence on stderr and exit code 2.

circuits.py makes, judges and exports circuits, importing.py makes them of what other programs saved, compare.py
compares criteria, atlas.py makes and query.py asks atlases, drawings.py draws circuits, pictures.py what drives
features, subcircuits.py divides them, networks.py shows and converts networks; common.py has what commands share,
recorded.py what they take from manifests, screen.py what is printed.
"""

import click

from jaxcircuits import __version__
from jaxcircuits.cli.atlas import atlas
from jaxcircuits.cli.circuits import evaluate, export, extract
from jaxcircuits.cli.common import Group
from jaxcircuits.cli.compare import compare
from jaxcircuits.cli.drawings import draw, report
from jaxcircuits.cli.importing import import_
from jaxcircuits.cli.networks import convert, info
from jaxcircuits.cli.pictures import pictures
from jaxcircuits.cli.query import query
from jaxcircuits.cli.subcircuits import subcircuits

__all__ = [
    "atlas", "compare", "convert", "draw", "evaluate", "export", "extract", "import_", "info", "main", "pictures",
    "query", "report", "subcircuits",
]  # fmt: skip


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Feature-preserving circuits of convolutional networks: the few kernels that suffice to compute a feature.

    For example, the circuits of two filters of AlexNet, on the photographs that come with jaxcircuits[demo]:

    \b
        jaxcircuits extract alexnet features.10:9 features.6:56
        jaxcircuits evaluate circuits/alexnet/*.safetensors --images MY_FOLDER
    """


for command in (
    extract, evaluate, compare, atlas, query, draw, report, pictures, subcircuits, export, import_, convert, info,
):  # fmt: skip
    main.add_command(command)
