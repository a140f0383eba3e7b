"""Linear SVMs and ridge regression, below both halves: vectors and targets in, weights out; nothing of images or networks."""
