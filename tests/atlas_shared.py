"""Builds atlases of one small network on several devices, or in one of several processes. Run by test_atlas_shared.py.

atlas_shared.py FOLDER devices               on one of eight devices, then on all of them
atlas_shared.py FOLDER process ADDRESS N ID  as process ID of N
"""

import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import jaxcircuits as jc
from tests.twins import Small, random_variables

warnings.simplefilter("ignore")


def build(root: Path, features: list[jc.Features], **options) -> None:
    apply_options = {"train": False}
    variables = random_variables(Small(), (1, 13, 13, 3), **apply_options)
    model = jc.Model(Small(), variables, name="small", apply_options=apply_options, input_size=13)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 13, 13, 3), dtype=np.uint8)
    images = jc.read_images(pixels, model)
    jc.build_atlas(model, images, features, directory=root, keep=[0.5, 0.2], batch=2, **options)


def main(folder: Path, how: str, *rest: str) -> None:
    if how == "process":
        jax.distributed.initialize(rest[0], int(rest[1]), int(rest[2]))
        build(folder / "atlas", [jc.Features("features.0", range(5))], chunk=1)
        print(jax.process_count(), len(jax.devices()))
        return
    print(len(jax.devices()))
    # eight chunks for eight devices, one or two of which are left over; three for eight
    layers = [jc.Features("features.0"), jc.Features("layer1.conv1", range(5))]
    for criterion, features, chunk in (("snip", layers[:1], 1), ("snip", layers[1:], 2), ("random", layers[:1], 3)):
        name = f"{criterion}-{features[0].layer}"
        for devices in (1, 8):
            build(
                folder / f"{name}-{devices}",
                features,
                chunk=chunk,
                criterion=criterion,
                devices=jax.devices()[:devices],
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
