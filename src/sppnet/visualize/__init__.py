"""Results as pictures: annotated images, class bars, curves, charts, and what the pyramid sees. Arrays and results in, pixels out.

What is called ``draw_*`` returns an image [H, W, 3] uint8 RGB, for `save_image`; what is called ``plot_*`` writes a file. Every
file bears our mark (`sppnet.files.MADE_BY`): the next run replaces it, and replaces nothing else.
"""

from sppnet.visualize.draw import draw_classification, draw_detections, draw_mistakes, save_image
from sppnet.visualize.plots import (
    plot_comparison,
    plot_confusion,
    plot_errors,
    plot_format,
    plot_precision_recall,
    plot_training,
)
from sppnet.visualize.pyramid import draw_pyramid

__all__ = [
    "draw_classification",
    "draw_detections",
    "draw_mistakes",
    "draw_pyramid",
    "plot_comparison",
    "plot_confusion",
    "plot_errors",
    "plot_format",
    "plot_precision_recall",
    "plot_training",
    "save_image",
]
