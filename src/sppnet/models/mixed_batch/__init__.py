"""Batches of images of different sizes: each image gets the features that it gets alone.

It sits before the pyramid: images [3, h_i, w_i] of any sizes -> one zero-padded batch [N, 3, H, W] -> features
[N, C, H', W'], and for every image the size (rows, columns) of its own part of the map, the upper left one.

What lies beyond an image's own edge fills up on the way: a bias makes it other than zero, a convolution smears the image
into it. So, layer by layer:

==========================================  ==========================================================================
a layer that works element by element       runs as it is
a layer that looks sideways (convolution,   first, what it can reach beyond each image's own edge is set back to that layer's
pooling)                                    padding: 0 for a convolution, -inf for a maximum
global pooling, squeeze-and-excite          is given each image's own cells, and divides by their number
a BatchNorm that learns                     takes its statistics over the own cells of all images, and no others
any other                                   runs on each image's own part by itself, or is refused by name
==========================================  ==========================================================================

How large an image's own part is at each layer comes from running the traced graph on the meta device, which knows shapes but
no numbers. Beyond the edges all stays finite, so that nothing of it reaches a result or a gradient, not even as infinity
times zero.

To read, in this order, each file using those after it:
`features` (what is called) -> `plan` (what is known of a backbone, and the sizes on its maps) -> `rules` and `operations`
(what each kind of layer needs) -> `needs` and `own_cells` (those needs, carried out) -> `padded_batch` (a batch on its way:
setting back what lies beyond the edges) -> `graph` (a backbone node by node).
"""

from sppnet.models.mixed_batch.features import MixedBatch, mixed_features, own_windows

__all__ = ["MixedBatch", "mixed_features", "own_windows"]
