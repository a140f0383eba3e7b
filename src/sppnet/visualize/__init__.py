"""Results as pictures: annotated images, class bars, curves, charts, and, in ``pyramid``, what the pyramid sees.

What is called ``draw_*`` returns an image [H, W, 3] uint8 RGB, for `save_image`; what is called ``plot_*`` writes a file. Every
file bears our mark (`sppnet.files.MADE_BY`): the next run replaces it, and replaces nothing else.
"""
