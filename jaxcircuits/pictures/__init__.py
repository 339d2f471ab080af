"""Pictures of features: what drives them most.

`visualise` makes such pictures by gradient ascent (fourier.py is how a picture is parametrised, transforms.py how it is
shaken on the way); `top_patches` finds them in an image set; sheets.py puts many on one sheet and writes PNGs.
"""

from jaxcircuits.pictures.patches import Patches, top_patches
from jaxcircuits.pictures.sheets import png, sheet
from jaxcircuits.pictures.visualise import Visualisation, visualise

__all__ = ["Patches", "Visualisation", "png", "sheet", "top_patches", "visualise"]
