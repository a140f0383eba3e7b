"""`SPPNet`: backbone -> pyramid pool -> fully connected layers -> class scores and box deltas.

images [N, 3, H, W] -> features [N, C, h, w] -> windows of them [R, 5] -> pooled [R, M, C] -> described [R, D] -> outputs.
A whole image is just one more window: "which classes are in this photo" and "what is in this box" go through the same
pooling and the same fully connected layers, and differ only in the last linear layer. Source: arXiv:1406.4729, sections
2 and 4; class scores and box deltas from one network: arXiv:1504.08083, section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sppnet.data.fit import fit_image, fitted_size
from sppnet.errors import UserError
from sppnet.layers import RegionPyramidPool
from sppnet.models.backbones import OWN, build_backbone, map_shape, smallest_side
from sppnet.models.geometry import backbone_geometry
from sppnet.models.mixed_batch import mixed_features, own_windows
from sppnet.models.window_mappings import MAPPINGS
from sppnet.ops.pyramid_pool import pyramid_pool

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIDUAL_SPREAD = 0.025  # sides of a box: makes residuals so large that small weights, soon learned, will do
WINDOWS_AT_ONCE = 4096  # bounds the memory of pooled windows: 4096 x 50 bins x 512 channels is 210 MB in half precision

CLASSIFIERS = ("softmax", "svm")  # probabilities of the network's own output, or margins of one linear SVM a class
SCALE_RULES = ("area", "side")
REGRESSIONS = ("network", "ridge", "ridge-pooled")  # own output; ridge regression on [R, D]; on the pooled windows


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to build an `SPPNet` again and to feed it images as it was trained."""

    names: tuple[str, ...]  # class names, without the background
    backbone: str = OWN
    levels: tuple[int, ...] = (6, 3, 2, 1)  # bins per side
    hidden: tuple[int, ...] = (1024, 1024)  # widths of the fully connected layers
    detects: bool = True  # whether it has the two outputs of detection
    multi_label: bool = True  # whether an image may hold several classes (sigmoid) or holds one (softmax)
    short_side: int = 600  # pixels: an image is resized so that its short side is this,
    long_side: int = 1000  # unless its long side would become longer than this
    fit: str = "native"  # or how it is made a square of short_side: see `sppnet.data.fit`
    fixed_size: bool = False  # whether it takes that square only, as networks without a pyramid do
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    backbone_stride: int = 0  # pixels per cell, where the backbone is cut to have it; 0: the backbone's own
    proposer: str = "selective-search"  # what proposed the boxes that the detector was trained on
    scales: tuple[int, ...] = ()  # pixels: short sides of the maps that windows are pooled from; (): short_side alone
    scale_rule: str = "area"  # which of them a window is pooled from: see `sppnet.detection.scales`
    mapping: str = "centre"  # from a box to its window: see `sppnet.models.window_mappings`
    # What is decided after fine-tuning. Not in `repr`: fine-tuning is named by it, and serves all of these.
    # What scores windows (see CLASSIFIERS); of a model that does not detect, whole images, and svm means probabilities, too.
    classifier: str = field(default="softmax", repr=False)
    regression: str = field(default="network", repr=False)  # what moves boxes: see REGRESSIONS
    ranks: tuple[int, ...] = field(default=(), repr=False)  # of the fully connected layers; 0: whole; (): all are

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Short sides at which windows are looked at, in pixels."""
        return self.scales or (self.short_side,)

    def sides(self, short_side: int | None = None) -> tuple[int, int]:
        """The short side, the architecture's own where none is given, and the longest long side, which is in proportion.

        Example:
            >>> Architecture((), short_side=600, long_side=1000).sides(1200)
            (1200, 2000)
        """
        if short_side is None:
            return self.short_side, self.long_side
        return short_side, round(self.long_side * short_side / self.short_side)


class LinearOutputs(nn.Module):
    """Linear outputs that were not learned together with the network: weights [.., D], biases [..], and the features' scale.

    Numbers alone, in float32 also in a model file: `sppnet.detection.linear_stages` puts them here and takes them out, and
    what they mean is said by `sppnet.detection.svm.LinearSVMs` ([K, D]) and `BoxRegression` ([K, 4, D]).
    """

    def __init__(self, outputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.weights = nn.Buffer(torch.zeros(*outputs, width))
        self.biases = nn.Buffer(torch.zeros(outputs))
        self.scale = nn.Buffer(torch.ones(()))


class UnitLength(nn.Module):
    """Vectors [R, D] divided by their lengths; one of zeros stays as it is. Source: arXiv:1406.4729, section 3.2."""

    def forward(self, vectors: Tensor) -> Tensor:
        exact = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # half precision holds no large squares
        return nn.functional.normalize(exact, dim=1).to(vectors.dtype)


def linear_layer(width: int, outputs: int, rank: int) -> nn.Module:
    """A linear layer, or, with a ``rank`` above 0, two thin ones whose product is of that rank (`sppnet.models.compress`)."""
    if not rank:
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, outputs))


def _check_choices(architecture: Architecture) -> None:
    for what, given, known in (
        ("classifier", architecture.classifier, CLASSIFIERS),
        ("regression", architecture.regression, REGRESSIONS),
        ("scale_rule", architecture.scale_rule, SCALE_RULES),
        ("mapping", architecture.mapping, tuple(MAPPINGS)),
    ):
        if given not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}: got {given!r}")
    if architecture.classifier == "svm" and not architecture.detects and architecture.hidden:
        raise ValueError(
            f"SVMs of whole images learn on the pooled pyramid: expected no fully connected layers, got {architecture.hidden}"
        )
    if architecture.ranks and len(architecture.ranks) != len(architecture.hidden):
        raise ValueError(
            f"expected a rank for each of {len(architecture.hidden)} fully connected layers, got {architecture.ranks}"
        )


class SPPNet(nn.Module):
    """A network that takes images of any size.

    Args:
        architecture: what to build. The backbone's stride and offset are computed from its modules.
        backbone: the convolutional part; built by name, with random weights, where it is not given.

    Raises:
        UserError: a backbone whose cells cannot be placed in the image, such as a transformer.

    Called with images, it gives the class logits of the whole images [N, K]: see `forward`. Detection asks it about
    windows: `features`, then `describe`, then `window_outputs`.

    Example:
        >>> net = SPPNet(Architecture(names=("cat", "dog"), hidden=(32,)))
        >>> net(torch.zeros(1, 3, 100, 150)).shape
        torch.Size([1, 2])
    """

    def __init__(self, architecture: Architecture, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        if architecture.fixed_size and architecture.fit == "native":
            raise UserError(
                "a network of one fixed input size cannot take images at their own: fit them by crop, squash or pad"
            )
        _check_choices(architecture)
        stride = architecture.backbone_stride or None
        self.backbone = build_backbone(architecture.backbone, stride=stride) if backbone is None else backbone
        try:
            self.geometry = backbone_geometry(self.backbone)
        except ValueError as error:
            raise UserError(f"backbone {architecture.backbone!r} cannot be used: {error}") from error
        channels, _, _ = map_shape(self.backbone, (224, 224))
        self.smallest_side = max(self.geometry.stride, smallest_side(self.backbone))  # pixels: below it, no map
        self.pool = RegionPyramidPool(architecture.levels)
        self.feature_scale = nn.Buffer(torch.ones(()))  # brings features to a mean square of 1: see `calibrate`

        layers: list[nn.Module] = [nn.Flatten()]
        width = pooled_width = self.pool.bins * channels
        for hidden, rank in zip(
            architecture.hidden, architecture.ranks or (0,) * len(architecture.hidden), strict=True
        ):
            layers += [linear_layer(width, hidden, rank), nn.ReLU(), nn.Dropout(0.5)]
            width = hidden
        if architecture.classifier == "svm" and not architecture.detects:
            layers.append(UnitLength())  # what `sppnet.classification.svm_head` learns on
        self.fully_connected = nn.Sequential(*layers)
        classes = len(architecture.names)
        self.image_logits = nn.Linear(width, classes)
        if architecture.detects:
            self.window_logits = nn.Linear(width, 1 + classes)
            self.shared_deltas = nn.Linear(width, 4)  # how boxes of any class should move,
            self.class_deltas = nn.Linear(
                width, 4 * classes
            )  # and what is special to each: seldom seen, slowly learned
            self.residual_deltas = nn.Linear(4, 4, bias=False)
            for linear in (self.shared_deltas, self.class_deltas, self.residual_deltas):
                nn.init.normal_(linear.weight, std=0.001)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            if architecture.classifier == "svm":
                self.svms = LinearOutputs((classes,), width)
            if architecture.regression != "network":
                wide = architecture.regression == "ridge-pooled"
                self.ridge = LinearOutputs((classes, 4), pooled_width if wide else width)

    @property
    def device(self) -> torch.device:
        return self.feature_scale.device

    def at_scales(self, scales: Sequence[int]) -> SPPNet:
        """This network, looking for objects at other scales; the weights are the same, in memory as well.

        Args:
            scales: short sides of the image, in pixels, one for each map; of each window the one where it looks the usual size
                counts (`sppnet.detection.scales`). None: `Architecture.short_side` alone.

        Returns:
            A model that shares its parameters with this one.

        Raises:
            ValueError: a scale below 1.

        Source: arXiv:1406.4729, section 4.1; what it is worth to a model trained at one: README, "How good is it?".

        Example:
            >>> net = SPPNet(Architecture(names=("cat", "dog"), hidden=(32,)))
            >>> net.at_scales((480, 688, 1000)).architecture.short_sides, net.architecture.short_sides
            ((480, 688, 1000), (600,))
        """
        if scales and min(scales) < 1:
            raise ValueError(f"expected short sides of at least 1 pixel: got {tuple(scales)}")
        other = copy.copy(self)
        other.architecture = replace(self.architecture, scales=tuple(scales))
        return other

    def prepare(self, image: np.ndarray, short_side: int | None = None) -> tuple[Tensor, tuple[float, float]]:
        """An image [H, W, 3] uint8 as the backbone takes it, and by how much it was resized.

        Args:
            image: not modified.
            short_side: pixels; the architecture's own where not given.

        Returns:
            [1, 3, h, w] float32, channels last in memory, on the model's device; the (vertical, horizontal) factor.
        """
        settings = self.architecture
        red, green, blue = (round(255 * value) for value in settings.mean)
        sides = settings.sides(short_side)
        resized = fit_image(image, settings.fit, *sides, minimum=self.smallest_side, fill=(red, green, blue))
        vertical, horizontal = (new / old for new, old in zip(resized.shape[:2], image.shape[:2], strict=True))
        return self.normalise(resized), (vertical, horizontal)

    def input_size(self, size: tuple[int, int], short_side: int | None = None) -> tuple[int, int]:
        """The (height, width) at which `prepare` gives an image of ``size``."""
        settings = self.architecture
        return fitted_size(size, settings.fit, *settings.sides(short_side), self.smallest_side)

    def normalise(self, image: np.ndarray) -> Tensor:
        """An image [h, w, 3] uint8 of the right size as the backbone takes it: see `prepare`."""
        image = np.require(image, requirements="W")  # PyTorch warns of arrays it may not write to
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.architecture.mean, self.architecture.std)
        )
        return (pixels.float() / 255 - mean) / std

    def features(self, images: Tensor) -> Tensor:
        """images [N, 3, H, W] -> features [N, C, h, w], in cells; their mean square is about 1."""
        features: Tensor = self.backbone(images) * self.feature_scale
        return features

    def calibrate(self, mean_square: float) -> None:
        """Set the scale of the features from the mean square that they have now, so that it becomes 1."""
        scale = float(self.feature_scale) / max(mean_square, 1e-12) ** 0.5
        self.feature_scale.fill_(float(f"{scale:.2e}"))  # rounded, so that another machine gets the very same

    def describe(self, pooled: Tensor) -> Tensor:
        """pooled windows [R, M, C] -> [R, D], by the fully connected layers."""
        if not torch.is_autocast_enabled(pooled.device.type):
            pooled = pooled.to(self.image_logits.weight.dtype)
        described: Tensor = self.fully_connected(pooled)
        return described

    def window_outputs(self, described: Tensor) -> tuple[Tensor, Tensor]:
        """[R, D] -> class logits [R, 1 + K] with the background first, and box deltas [R, K, 4]."""
        deltas = self.class_deltas(described).unflatten(1, (-1, 4)) + self.shared_deltas(described)[:, None]
        return self.window_logits(described), deltas

    def correct_deltas(self, deltas: Tensor, residuals: Tensor) -> Tensor:
        """Box deltas [R, K, 4] for boxes that their windows do not quite cover, by `window_residuals` [R, 4].

        The paper has no such term: with it, boxes that fall on the same cells need not move by the same deltas.
        """
        return deltas + self.residual_deltas(residuals / RESIDUAL_SPREAD)[:, None]

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Class logits of whole images.

        Args:
            images: [N, 3, H, W], normalised (see `prepare`), or a list of [3, h, w] of any sizes, which go through in one
                batch and get what each would get alone: see `sppnet.models.mixed_batch`.

        Returns:
            [N, K] logits: before the sigmoid of a multi-label model, before the softmax of a single-label one.

        Raises:
            ValueError: neither of the two forms.
            UserError: a network of one fixed input size, and images of another.
        """
        if not isinstance(images, Tensor):
            if not all(isinstance(image, Tensor) and image.ndim == 3 for image in images):
                raise ValueError("images must be a tensor [N, 3, H, W] or a list of tensors [3, h, w]")
            if not len(images):
                return self.image_logits.weight.new_zeros(0, len(self.architecture.names))
            if self.architecture.fixed_size:
                return torch.cat([self(image[None]) for image in images])
            features, sizes = mixed_features(self.backbone, images)
            pooled = self.pool(features * self.feature_scale, own_windows(sizes, features.device))
            logits: Tensor = self.image_logits(self.describe(pooled))
            return logits
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [N, 3, H, W]: got shape {list(images.shape)}")
        side = self.architecture.short_side
        if self.architecture.fixed_size and images.shape[2:] != (side, side):
            raise UserError(
                f"this network takes images of {side} x {side} alone: got {images.shape[2]} x {images.shape[3]}"
            )
        pooled = pyramid_pool(self.features(images), self.architecture.levels)
        result: Tensor = self.image_logits(self.describe(pooled))
        return result
