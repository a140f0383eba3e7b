"""Detection: one convolutional map per image, thousands of windows pooled from it."""
