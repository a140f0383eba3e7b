"""`SPPNet`: backbone -> pyramid pool -> fully connected layers -> heads for whole images and for windows.

images [N, 3, H, W] -> features [N, C, h, w] -> windows of them [R, 5] -> pooled [R, M, C] -> head features [R, D] -> logits, deltas.
A whole image is just one more box: "what is in this photo" and "what is in this box" go through the same pooling and the same
fully connected layers, and differ only in the last head. Source: arXiv:1406.4729, sections 2 and 4; class scores and box deltas
from one network: arXiv:1504.08083, section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import ModelError, SettingsError
from sppnet.layers import RegionPyramidPool, bound_cpu_caches
from sppnet.models import heads
from sppnet.models.backbones import LITE, PAPER_NETS, build_backbone, normalization
from sppnet.models.geometry import Geometry, Size, backbone_geometry, boxes_to_windows, window_residuals
from sppnet.models.mixed_batch import mixed_features, own_windows
from sppnet.models.networks import initialize_as_paper
from sppnet.models.precision import autocast
from sppnet.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, LONGEST_SIDE, Preprocess
from sppnet.models.proposal_head import ProposalHead
from sppnet.ops.pyramid_pool import pyramid_pool

WINDOW_CHUNK = 4096  # bounds the memory of pooled windows: 4096 x 50 bins x 512 channels is 210 MB in half precision


@dataclass(frozen=True)
class Architecture:
    """What the network is built of: `build_model` makes one of it again.

    Args:
        class_names: K, without the background.
        backbone: a name that `sppnet.models.backbones.build_backbone` knows.
        levels: bins per side of the pyramid.
        hidden: widths of the fully connected layers,
        ranks: and their ranks, 0 for whole; none: all are.
        backbone_stride: pixels from one cell of the map to the next, by dilation; 0: the backbone's own.
        detects: whether it has heads for windows.
        multi_label: whether an image may hold several classes (sigmoid) or holds one (softmax).
        window_classifier: "softmax" or "svm".
        box_regressor: "network" or "ridge".
        unit_length: whether head features are divided by their length: linear SVMs on the pyramid of whole images.
        proposes: whether it has a region proposal head.

    Raises:
        SettingsError: no class names, or one twice; an unknown head, a level or width below 1, or ranks that do not fit the layers.
    """

    class_names: tuple[str, ...]
    backbone: str = LITE
    levels: tuple[int, ...] = (6, 3, 2, 1)
    hidden: tuple[int, ...] = (1024, 1024)
    ranks: tuple[int, ...] = ()
    backbone_stride: int = 0
    detects: bool = True
    multi_label: bool = True
    window_classifier: str = "softmax"
    box_regressor: str = "network"
    unit_length: bool = False
    proposes: bool = False

    def __post_init__(self) -> None:
        if not all(self.class_names) or not 0 < len(set(self.class_names)) == len(self.class_names):
            raise SettingsError(f"expected class names, each once: got {self.class_names}")
        for name, known in (("window_classifier", ("softmax", "svm")), ("box_regressor", ("network", "ridge"))):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} must be one of {', '.join(known)}: got {getattr(self, name)!r}")
        if not self.levels or min(*self.levels, *self.hidden, 1) < 1:
            raise SettingsError(f"levels and hidden must be at least 1: got {self.levels} and {self.hidden}")
        if self.ranks and len(self.ranks) != len(self.hidden):
            layers = f"{len(self.hidden)} fully connected layers"
            raise SettingsError(f"expected a rank for each of {layers}, got {self.ranks}")


@dataclass(frozen=True)
class DetectionSettings:
    """How a detector looks at an image: by which proposals, at which scales.

    Args:
        proposals: the proposal method of the boxes that it was trained on: see `sppnet.proposals`.
        scales: short sides in pixels, one for each feature map; a window is pooled from the map where its object looks the
            usual size. None: the short side of `Preprocess` alone.

    Raises:
        SettingsError: a scale below 1 or above 20000.
    """

    proposals: str = "selective-search"
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.scales and not 1 <= min(self.scales) <= max(self.scales) <= LONGEST_SIDE:
            raise SettingsError(f"scales must be short sides of 1 to {LONGEST_SIDE} pixels: got {self.scales}")


class SPPNet(heads.SinglePrecisionBuffers):
    """A network that takes images of any size.

    Args:
        architecture, preprocess, detection: what it is built of, how images are fed to it, how it looks for objects.
        backbone: images [N, 3, H, W] -> features [N, C, h, w].
        geometry: stride and offset of the backbone, and its channels C.

    Attributes:
        pool: features and windows [R, 5] -> pooled [R, M, C].
        fully_connected: pooled -> head features [R, D].
        image_classifier: head features of whole images -> logits [N, K].
        window_classifier: head features of windows -> logits [R, 1 + K]; None: the model only classifies.
        box_regressor: head features and residuals of windows -> box deltas [R, K, 4].
        proposal_head: features -> scores and deltas of anchors; None: proposals come from elsewhere.

    Example:
        >>> net = build_model(Architecture(class_names=("cat", "dog"), hidden=(32,)))
        >>> net(torch.zeros(1, 3, 100, 150)).shape
        torch.Size([1, 2])
        >>> logits, deltas = net(torch.zeros(1, 3, 100, 150), torch.tensor([[0.0, 0, 90, 60], [20, 0, 90, 60]]))
        >>> logits.shape, deltas.shape
        (torch.Size([2, 3]), torch.Size([2, 2, 4]))
    """

    def __init__(
        self,
        architecture: Architecture,
        preprocess: Preprocess,
        detection: DetectionSettings,
        backbone: nn.Module,
        geometry: Geometry,
    ) -> None:
        super().__init__()
        bound_cpu_caches()  # images of many sizes
        self.architecture, self.preprocess, self.detection = architecture, preprocess, detection
        self.geometry = geometry
        self.record: dict[str, Any] = {}  # how it was trained
        self.feature_scale = nn.Buffer(torch.ones(()))  # brings features to a mean square of 1: see `set_feature_scale`
        self.backbone, self.pool = backbone, RegionPyramidPool(architecture.levels)
        inputs, classes, zeros = self.pool.bins * geometry.channels, len(architecture.class_names), torch.zeros
        unit_length = architecture.unit_length
        self.fully_connected = heads.FullyConnected(inputs, architecture.hidden, architecture.ranks, unit_length)
        width = self.fully_connected.width
        classifier: heads.SoftmaxClassifier | heads.SVMClassifier | None = None
        regressor: heads.BoxRegressor | heads.RidgeRegressor | None = None
        if architecture.detects:
            if architecture.window_classifier == "svm":
                classifier = heads.SVMClassifier(zeros(classes, width), zeros(classes))
            else:
                classifier = heads.SoftmaxClassifier(width, classes)
            if architecture.box_regressor == "ridge":
                regressor = heads.RidgeRegressor(zeros(classes, 4, width), zeros(classes, 4))
            else:
                regressor = heads.BoxRegressor(width, classes)
        self.image_classifier = heads.ImageClassifier(width, classes, architecture.multi_label)
        self.window_classifier, self.box_regressor = classifier, regressor
        self.proposal_head = ProposalHead(geometry) if architecture.proposes else None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.architecture.class_names

    @property
    def device(self) -> torch.device:
        return self.feature_scale.device

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Short sides, in pixels, at which windows are looked at."""
        return self.detection.scales or (self.preprocess.short_side,)

    def features(self, images: Tensor) -> Tensor:
        """images [N, 3, H, W] -> features [N, C, h, w], in cells; their mean square is about 1.

        Maps of next to no width are computed in single precision, whatever autocast says. In bfloat16, PyTorch's CPU library (oneDNN on
        processors with AMX, torch 2.15) reads beyond the memory of maps one or two cells wide in strided convolutions, and gives
        NaN now and then.
        """
        casts = torch.is_autocast_enabled("cpu")  # asked first: the sizes of a graph that is exported stay free
        narrow = casts and images.device.type == "cpu" and min(images.shape[2:]) < 2 * self.geometry.stride
        with torch.autocast("cpu", enabled=False) if narrow else nullcontext():
            features: Tensor = (
                self.backbone(heads.in_dtype_of(self.image_classifier.weight, images)) * self.feature_scale
            )
        return features

    def image_features(self, images: Tensor) -> Tensor:
        """`features` of preprocessed images, moved to the model's device, channels last: the order convolutions are fastest in."""
        return self.features(images.to(self.device).contiguous(memory_format=torch.channels_last))

    def image_logits(self, pooled: Tensor) -> Tensor:
        """Pooled whole images [N, M, C] -> logits [N, K]."""
        logits: Tensor = self.image_classifier(self.fully_connected(pooled))
        return logits

    def windows(self, boxes: Tensor, feature_size: Size, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Boxes of an image -> windows of its feature map.

        Args:
            boxes: [R, 4] in pixels of the image.
            feature_size: (height, width) of the map, in cells.
            scale: (vertical, horizontal) factor from the image to what the backbone saw.

        Returns:
            [R, 4] int64 in cells, and residuals [R, 4] float32: see `sppnet.models.geometry`.
        """
        windows = boxes_to_windows(boxes, self.geometry, feature_size, scale)
        return windows, window_residuals(boxes, windows, self.geometry, scale)

    def heads(self, head_features: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Head features [R, D] and residuals [R, 4] of windows -> logits [R, 1 + K], deltas [R, K, 4] over `delta_scale`."""
        if self.window_classifier is None or self.box_regressor is None:
            raise ModelError("this model classifies only: give a detector, such as the shipped 'voc', or classify")
        return self.window_classifier(head_features), self.box_regressor(head_features, residuals)

    def forward(
        self, images: Tensor | Sequence[Tensor], boxes: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What is in whole images, or in boxes of them. Differentiable.

        Args:
            images: [N, 3, H, W], normalized (see `Preprocess`), or a list of [3, h, w] of any sizes, which go through in one batch
                and get what each would get alone: see `sppnet.models.mixed_batch`.
            boxes: of each image [R_i, 4] in pixels of it; one tensor for one image. None: the whole images.

        Returns:
            Of whole images logits [N, K], before the sigmoid of a multi-label model, before the softmax of a single-label one.
            Of boxes, image after image, logits [R, 1 + K], background first, and box deltas [R, K, 4] over the regressor's
            ``delta_scale`` (`sppnet.boxes.decode_boxes` applies them).

        Raises:
            ValueError: neither of the two forms, or not one set of boxes for each image.
            SettingsError: a network of one fixed input size, and images of another.
            ModelError: boxes, and a model that only classifies.
        """
        self._check(images)
        if not len(images):
            return self.image_classifier.weight.new_zeros(0, len(self.class_names))
        if isinstance(images, Tensor):
            features = self.features(images)
            sizes = [(features.shape[2], features.shape[3])] * len(images)
        else:
            cast = [heads.in_dtype_of(self.image_classifier.weight, image) for image in images]
            features, sizes = mixed_features(self.backbone, cast)
            features = features * self.feature_scale
        if boxes is None:
            if isinstance(images, Tensor):
                return self.image_logits(pyramid_pool(features, self.pool.levels))
            return self.image_logits(self.pool(features, own_windows(sizes, features.device)))
        each = (boxes,) if isinstance(boxes, Tensor) else boxes
        if len(each) != len(images):
            raise ValueError(f"expected boxes [R, 4] for each of {len(images)} images: got {len(each)} sets of them")
        placed = [self.windows(part, size, (1.0, 1.0)) for part, size in zip(each, sizes, strict=True)]
        windows = torch.cat([F.pad(part, (1, 0), value=index) for index, (part, _) in enumerate(placed)])
        residuals = torch.cat([part for _, part in placed]).to(features.device)
        pooled = self.pool(features, windows.to(features.device))
        return self.heads(self.fully_connected(pooled), residuals)

    def _check(self, images: Tensor | Sequence[Tensor]) -> None:
        if isinstance(images, Tensor):  # not image by image: an exported network takes any number
            right = images.ndim == 4 and images.shape[1] == 3
        else:
            right = all(isinstance(image, Tensor) and image.ndim == 3 for image in images)
        if not right:
            raise ValueError("images must be a tensor [N, 3, H, W] or a list of tensors [3, h, w]")
        if self.preprocess.fixed_size:
            side = self.preprocess.short_side
            for _, height, width in (image.shape for image in images):
                if (height, width) != (side, side):
                    raise SettingsError(f"this network takes images of {side} x {side} alone: got {height} x {width}")

    def set_feature_scale(self, mean_square: float) -> None:
        """Set the scale of the features from the mean square that they have now, so that it becomes 1."""
        scale = float(self.feature_scale) / max(mean_square, 1e-12) ** 0.5
        self.feature_scale.fill_(float(f"{scale:.2e}"))  # rounded, so that another machine gets the very same

    def at_scales(self, scales: Sequence[int]) -> SPPNet:
        """This network, looking for objects at other scales; the weights are the same, in memory as well.

        Args:
            scales: see `DetectionSettings`; none: the short side of `Preprocess` alone.

        Source: arXiv:1406.4729, section 4.1.

        Example:
            >>> net = build_model(Architecture(class_names=("cat", "dog"), hidden=(32,)))
            >>> net.at_scales((480, 688, 1000)).short_sides, net.short_sides
            ((480, 688, 1000), (600,))
        """
        other = copy.copy(self)
        other.detection = replace(self.detection, scales=tuple(scales))
        return other

    @contextmanager
    def inference(self, *, bfloat16: bool = True) -> Iterator[None]:
        """Within it, evaluation mode, no gradients, and bfloat16 where the device is fast at it and the weights are float32."""
        training = [module for module in self.modules() if module.training]
        enabled = bfloat16 and self.image_classifier.weight.dtype == torch.float32
        try:
            self.eval()
            with torch.inference_mode(), autocast(self.device, enabled=enabled):
                yield
        finally:
            for module in training:
                module.training = True

    # What users ask a model. Imported when called: prediction stands on models, not the other way round.

    def detect(self, source: Any, **options: Any) -> Any:
        """Find objects: see :func:`sppnet.detect`. Of a list or an iterator of photos, one answer after another."""
        from sppnet.detection.predict import detect, detect_each

        return detect(source, self, **options) if _is_one(source) else detect_each(source, self, **options)

    def classify(self, source: Any, **options: Any) -> Any:
        """Say what is in photos: see :func:`sppnet.classify`. Of a list or an iterator, one answer after another."""
        from sppnet.classification.predict import classify, classify_each

        return classify(source, self, **options) if _is_one(source) else classify_each(source, self, **options)

    def embed(self, source: Any, boxes: Any = None) -> Any:
        """Vectors of one length, whatever the sizes: see :func:`sppnet.embed`."""
        from sppnet.classification.predict import embed

        return embed(source, self, boxes)

    def save(self, path: str | Path) -> None:
        """Write a model file: see `sppnet.models.files.save_model`."""
        from sppnet.models.files import save_model

        save_model(self, path)


def _is_one(source: Any) -> bool:
    """Whether this is one photo (a file that is open can be iterated over, too) and not several."""
    return hasattr(source, "read") or not isinstance(source, (list, tuple, Iterator))


def build_model(
    architecture: Architecture,
    preprocess: Preprocess = Preprocess(),
    detection: DetectionSettings = DetectionSettings(),
    *,
    backbone: nn.Module | None = None,
    geometry: Geometry | None = None,
) -> SPPNet:
    """Build a network.

    Args:
        architecture, preprocess, detection: see there.
        backbone: the convolutional part; built by name, with random weights, where it is not given.
        geometry: of the backbone; computed from its modules where it is not given.

    Raises:
        ModelError: a backbone whose cells cannot be placed in the image, such as a transformer.

    Example:
        >>> build_model(Architecture(("cat", "dog"), "zf5")).geometry
        Geometry(stride=16, offset=20.5, smallest_side=31, channels=256)
    """
    if backbone is None:
        backbone = build_backbone(architecture.backbone, stride=architecture.backbone_stride or None)
    if geometry is None:
        try:
            geometry = backbone_geometry(backbone)
        except ValueError as error:
            raise ModelError(f"backbone {architecture.backbone!r} cannot be used: {error}") from error
    preprocess = replace(preprocess, smallest_side=max(geometry.stride, geometry.smallest_side))
    if (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD):
        mean, std = normalization(architecture.backbone)
        preprocess = replace(preprocess, mean=mean, std=std)
    net = SPPNet(architecture, preprocess, detection, backbone, geometry)
    if architecture.backbone in PAPER_NETS:
        initialize_as_paper(net)
    return net
