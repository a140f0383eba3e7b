"""Detection: one convolutional map per image, thousands of windows pooled from it."""

NMS_IOU = 0.3  # the paper's: of two boxes of one class that overlap more, the lower-scoring goes
VOTE_IOU = 0.5  # arXiv:1505.01749: boxes of one class that overlap a kept one by this much say where it belongs
SMALLEST_SIDE = 1.0  # pixels: a decoded box thinner than this is dropped
