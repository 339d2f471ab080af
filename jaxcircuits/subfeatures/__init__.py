"""Sub-features: circuits of one image or a group of them, and what they show of a feature.

scoring.py scores image by image, groups.py groups images, parts.py makes the groups' circuits and compares them,
trajectories.py maps the images, and page.py shows the map.
"""

from jaxcircuits.subfeatures.groups import by_folder, clusters, profiles, silhouette
from jaxcircuits.subfeatures.page import map_page
from jaxcircuits.subfeatures.parts import Parts, circuits, judge, responses, separate
from jaxcircuits.subfeatures.scoring import ImageScores, at_peak, image_scores
from jaxcircuits.subfeatures.trajectories import Trajectories, need_umap, trajectories

__all__ = [
    "ImageScores",
    "Parts",
    "Trajectories",
    "at_peak",
    "by_folder",
    "circuits",
    "clusters",
    "image_scores",
    "judge",
    "map_page",
    "need_umap",
    "profiles",
    "responses",
    "separate",
    "silhouette",
    "trajectories",
]
