"""What commands that read circuit files take from their manifests: the network and the images."""

from __future__ import annotations

from jaxcircuits.circuit import Circuit
from jaxcircuits.data import Images
from jaxcircuits.errors import InputError
from jaxcircuits.model import Model


def network_of(circuit: Circuit, weights: str | None, load) -> Model:
    """The circuit's model; with its own weights, unless others are named."""
    recorded = circuit.manifest["weights"]
    source = recorded["source"] if weights is None else weights
    model = load(circuit.manifest["model"], weights=source, transform_input=recorded.get("transform_input"))
    if weights is None and model.sha256 != recorded["sha256"]:
        raise InputError(
            f"the weights {recorded['source']!r} are no longer the circuit's; --weights takes them as they are"
        )
    return model


def pictures_of(circuit: Circuit, images: str | None, resize: str | None, model: Model, strict: bool, read) -> Images:
    """The circuit's images, unless others are named."""
    recorded = circuit.manifest["images"]
    if images is None and recorded["source"] == "array":
        raise InputError("the circuit was made on an array in memory; name images to judge it on with --images")
    how = resize or recorded["resize"] or "crop"
    limit = recorded["number"] if images is None else None
    pictures = read(images or recorded["source"], model, resize=how, strict=strict, limit=limit)
    if images is None and resize is None and pictures.digest != recorded["digest"]:
        raise InputError(
            f"the images {recorded['source']!r} are no longer the circuit's; --images takes them as they are"
        )
    return pictures
