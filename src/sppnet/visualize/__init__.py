"""Results as pictures: annotated images, class bars, precision-recall curves. Arrays and results in, pixels out.

Images are [H, W, 3] uint8 RGB, as `sppnet.data.images.read_image` gives them. Everything scales with the picture, so that
a thumbnail and a photo of 20 megapixels read alike.
"""

from sppnet.visualize.annotate import draw_classification, draw_detections
from sppnet.visualize.canvas import save_image
from sppnet.visualize.curves import plot_precision_recall

__all__ = ["draw_classification", "draw_detections", "plot_precision_recall", "save_image"]
