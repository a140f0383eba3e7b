"""Detection: one feature map per image, thousands of windows pooled from it."""
