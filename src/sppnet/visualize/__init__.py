"""Results as pictures: annotated images, class bars, curves, charts, and what the pyramid sees. Arrays and results in, pixels out.

Images are [H, W, 3] uint8 RGB, as `sppnet.data.images.read_image` gives them. Everything scales with the picture, so that
a thumbnail and a photo of 20 megapixels read alike. What is called ``draw_*`` returns an image, for `save_image`; what is
called ``plot_*`` writes a file.
"""

from sppnet.visualize.annotate import draw_classification, draw_detections
from sppnet.visualize.canvas import save_image
from sppnet.visualize.classification import draw_mistakes, plot_confusion, plot_training
from sppnet.visualize.comparison import plot_comparison
from sppnet.visualize.curves import plot_precision_recall
from sppnet.visualize.errors import plot_errors
from sppnet.visualize.pyramid import draw_contributions, draw_pyramid

__all__ = [
    "draw_classification",
    "draw_contributions",
    "draw_detections",
    "draw_mistakes",
    "draw_pyramid",
    "plot_comparison",
    "plot_confusion",
    "plot_errors",
    "plot_precision_recall",
    "plot_training",
    "save_image",
]
