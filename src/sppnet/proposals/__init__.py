"""Proposals: boxes of an image, [R, 4] float32, that may hold an object. The network scores them; here they are found."""
