"""The command line: parses, calls public functions, prints. Bad input is one sentence on stderr and exit code 2.

circuits.py makes, judges and exports circuits, importing.py makes them of what other programs saved, compare.py
compares criteria, atlas.py makes and query.py asks atlases, drawings.py draws circuits, pictures.py what drives
features, subcircuits.py divides them, networks.py shows and converts networks; common.py has what commands share,
recorded.py what they take from manifests, screen.py what is printed.
"""

from importlib import import_module

import click

from jaxcircuits import __version__

COMMANDS = {  # command -> the file that has it, after a colon its name there, and what the list of commands says
    "atlas": ("atlas", "Make the circuits of whole layers or networks, and go on after interruptions."),
    "compare": ("compare", "Compare the criteria: r over keep, who wins where, at what cost."),
    "convert": ("networks", "Convert MODEL's weights to Flax, or back."),
    "diagram": ("drawings:draw", "Draw circuit files: a page each, and SVG, PNG, PDF, GraphML, JSON."),
    "evaluate": ("circuits", "Judge circuit files on these or other images."),
    "export": ("circuits", "Write circuit files for PyTorch."),
    "extract": ("circuits", "Find the circuits of features and write them to files."),
    "import": ("importing:import_", "Make circuit files of masks or scores that other programs saved."),
    "info": ("networks", "List the models, or the layers of MODEL."),
    "pictures": ("pictures", "Draw what drives features: made pictures, and patches of images."),
    "query": ("query", "Ask an atlas: who uses a kernel, which are alike."),
    "report": ("drawings", "Put what is known of circuit files on one page."),
    "subcircuits": ("subcircuits", "Find the circuits of groups of a feature's images, and map the images."),
}


class Commands(click.Group):
    """A command is imported when it is run: `--help` and `--version` wait for nothing that computes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        room, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(f"{__name__}.{room}"), name or cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Feature-preserving circuits of convolutional networks: the few kernels that suffice to compute a feature.

    For example, the circuits of two filters of AlexNet, on the photographs that come with jaxcircuits[demo]:

    \b
        jaxcircuits extract alexnet features.10:9 features.6:56
        jaxcircuits evaluate circuits/alexnet/*.safetensors --images MY_FOLDER
    """
