"""At which of several scales a window is pooled: where its object looks the usual size.

Source: arXiv:1406.4729, section 4.1 (s in {480, 576, 688, 864, 1200}, a window's area nearest to 224 x 224 pixels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppnet.models.sppnet import SCALE_RULES

SHORT_SIDES = (480, 576, 688, 864, 1200)  # pixels (the release has 874 for 864)
USUAL_SIDE = 224  # pixels: the side of the square that a window's area should be nearest to
RELEASE_SIDE = 208  # the same of the authors' release: 13 cells of 16 pixels


def choose_scale(boxes: Tensor, scales: Sequence[tuple[float, float]], rule: str = "area") -> Tensor:
    """At which scale each box should be pooled.

    Args:
        boxes: [R, 4] in pixels of the image.
        scales: (vertical, horizontal) factor of each, from the image to what the backbone sees.
        rule: ``"area"``: where the box's area is nearest to 224 x 224 pixels, as the paper says and Fast R-CNN does;
            ``"side"``: where the root of its area is nearest to 208 pixels, measured in the image's own scale, as the
            authors' release does. They differ, as areas grow with the square: ``"side"`` takes smaller scales.

    Returns:
        [R] int64, an index into ``scales``; of two as near, the first.

    Raises:
        ValueError: no scales, or another rule.

    Source: arXiv:1406.4729, section 4.1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 60, 60]])
        >>> choose_scale(boxes, [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)])
        tensor([0, 2])
    """
    if not len(scales) or rule not in SCALE_RULES:
        raise ValueError(
            f"expected at least one scale and one of the rules {', '.join(SCALE_RULES)}: "
            f"got {len(scales)} scales and {rule!r}"
        )
    factors = torch.tensor([vertical * horizontal for vertical, horizontal in scales], dtype=torch.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).double().clamp(min=0).prod(1, keepdim=True)
    if rule == "area":
        distances = (areas * factors - USUAL_SIDE**2).abs()
    else:
        distances = (factors.sqrt() - RELEASE_SIDE / areas.sqrt().clamp(min=1e-9)).abs()
    return distances.argmin(1)
