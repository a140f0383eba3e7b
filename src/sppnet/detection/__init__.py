"""Detection: one convolutional map per image, thousands of windows pooled from it."""

NMS_IOU = 0.3  # the paper's: of two boxes of one class that overlap more, the lower-scoring goes
