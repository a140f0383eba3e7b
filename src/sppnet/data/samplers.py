"""What training draws: batches of images of like size, so that little is padded, and how each image is varied.

Between reading a folder and the network: images of different sizes share a batch by padding each to the tallest and the
widest; what is padded is computed for nothing. Sizes are (height, width) in pixels, as the network will see them.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import cv2
import numpy as np

from sppnet.data.images import checked_size

# How much sizes are varied before sorting (standard deviation, in proportion): more mixes more and pads more. Measured on the
# 3500 photos of VOC 2007 at short side 224 (long side at most 448), batches of 32, for 0, 0.02 and 0.1: 1.4, 3.8 and 16 % of
# pixels are padding (random batches: 47 %), and two that met in one epoch meet again in the next in 58, 6.5 and 2 % of cases
# (by chance: 0.9 %).
VARIATION = 0.02


@dataclass(eq=False)
class SizeBuckets:
    """Batches of like sizes, every sample once an epoch, as many batches on every rank.

    Of N samples, T batches are made: the fewest that hold at most ``batch_size`` samples each and can be dealt out
    evenly to the ranks. Their lengths differ by at most one, so there is no small last batch. Batches are cut from the
    samples by halving: again and again, at the median of height or of width, whichever varies more (in proportion),
    until each piece is one batch. Before that, sizes are varied at random by some per cent, so that other samples meet
    in every epoch. The batches of one step, one a rank, are neighbours: ranks wait little for each other.

    No sample is left out. Only where N samples cannot fill T batches of ``smallest_batch`` (N odd and batches of 2;
    fewer samples than two a rank) are some drawn at random and used a second time in that epoch: ``repeated`` says how
    many.

    Every rank makes the same plan from (seed, epoch), without talking to the others.

    Args:
        sizes: [N, 2] (height, width) of every sample, in whole pixels, each at least 1; or a list of such pairs.
        batch_size: most samples in one batch on one rank, at least ``smallest_batch``.
        seed: 0 or more. The same seed and epoch give the same batches.
        shuffle: batches in random order, with other company every epoch. False: the same batches every epoch, by size,
            for evaluation.
        ranks, rank: number of processes that share the work, and which of them this is, from 0.
        smallest_batch: fewest samples in a batch: 2 for BatchNorm, which cannot learn from one; 1 where that is no
            matter.

    Raises:
        ValueError: no sizes, a size below 1, or numbers out of the ranges above. The message shows which.

    Example:
        >>> buckets = SizeBuckets([(60, 80), (80, 60)] * 50, batch_size=16)
        >>> len(buckets), sorted({len(batch) for batch in buckets.batches(epoch=0)}), buckets.repeated
        (7, [14, 15], 0)
        >>> buckets.padding_share() < 0.05  # 0.22 for batches drawn at random
        True
    """

    sizes: np.ndarray
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = True
    ranks: int = 1
    rank: int = 0
    smallest_batch: int = 2

    def __post_init__(self) -> None:
        self.sizes = np.asarray(self.sizes)
        shape, dtype = list(self.sizes.shape), self.sizes.dtype
        if shape[1:] != [2] or shape[0] < 1 or not np.issubdtype(dtype, np.integer):
            expected = "sizes [N, 2], (height, width) in whole pixels, N at least 1"
            raise ValueError(f"SizeBuckets: expected {expected}, got {shape} {dtype}")
        if self.sizes.min() < 1:
            raise ValueError(f"SizeBuckets: every side must be at least 1 pixel, got {self.sizes.min()}")
        if self.smallest_batch < 1 or self.batch_size < self.smallest_batch:
            expected = "SizeBuckets: batch_size must be at least smallest_batch, and that at least 1"
            hint = "a batch of one is for networks without BatchNorm: smallest_batch=1"
            raise ValueError(f"{expected}, got {self.batch_size} and {self.smallest_batch}; {hint}")
        if self.ranks < 1 or not 0 <= self.rank < self.ranks:
            raise ValueError(f"SizeBuckets: rank must be from 0 to ranks - 1, got rank {self.rank} of {self.ranks}")
        if self.seed < 0:
            raise ValueError(f"SizeBuckets: seed must be 0 or more, got {self.seed}")
        self._planned: tuple[int, list[list[np.ndarray]]] = (-1, [])  # an epoch, and its batches

    @property
    def repeated(self) -> int:
        """Samples used a second time in every epoch, over all ranks, where batches could not be filled otherwise."""
        return max(0, len(self) * self.ranks * self.smallest_batch - len(self.sizes))

    def __len__(self) -> int:
        """Count the batches of an epoch on this rank (all ranks have as many)."""
        return -(-len(self.sizes) // (self.batch_size * self.ranks))

    def batches(self, epoch: int) -> list[list[int]]:
        """Give this rank's batches of an epoch, in order.

        Args:
            epoch: counted from 0.

        Returns:
            ``len(self)`` lists of sample indices, rising in each.
        """
        return [step[self.rank].tolist() for step in self._plan(epoch)]

    def batch(self, n: int) -> tuple[int, list[int]]:
        """The epoch of batch number n, and its samples: in step s, rank r has number ``s * ranks + r``."""
        step, rank = divmod(n, self.ranks)
        epoch, number = divmod(step, len(self))
        if self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return epoch, self._planned[1][number][rank].tolist()

    def padding_share(self, epoch: int = 0) -> float:
        """Say which share of the pixels in an epoch's batches is padding, over all ranks: 0 to 1.

        Each batch of n images takes n x tallest x widest pixels; what the images themselves do not fill is padding.
        Epochs count from 0.
        """
        batches = [self.sizes[batch] for step in self._plan(epoch) for batch in step]
        filled = sum(int(sizes.prod(axis=1).sum()) for sizes in batches)
        return 1 - filled / sum(len(sizes) * int(sizes.max(axis=0).prod()) for sizes in batches)

    def _plan(self, epoch: int) -> list[list[np.ndarray]]:
        """All ranks' batches of an epoch: by step, then by rank."""
        rng = np.random.default_rng([self.seed, epoch if self.shuffle else 0])
        samples = np.arange(len(self.sizes))
        while len(samples) < len(self.sizes) + self.repeated:  # once, unless there are fewer samples than ranks
            missing = len(self.sizes) + self.repeated - len(samples)
            samples = np.concatenate([samples, rng.permutation(len(self.sizes))[:missing]])
        places = np.log(self.sizes[samples])  # [N + repeated, 2]: equal distances are equal proportions
        if self.shuffle:
            places += rng.normal(scale=VARIATION, size=places.shape)

        lengths = _even_lengths(len(samples), len(self), self.ranks, rng if self.shuffle else None)  # [steps, ranks]
        order = np.concatenate(_halve(np.arange(len(samples)), places, lengths.ravel(), self.ranks))
        cuts = np.split(order, np.cumsum(lengths.ravel())[:-1])
        batches = [np.sort(samples[cut]) for cut in cuts]
        steps = [batches[start : start + self.ranks] for start in range(0, len(batches), self.ranks)]
        if not self.shuffle:
            return steps
        return [[steps[i][rank] for rank in rng.permutation(self.ranks)] for i in rng.permutation(len(steps))]


def _even_lengths(samples: int, steps: int, ranks: int, rng: np.random.Generator | None) -> np.ndarray:
    """Lengths of all batches, [steps, ranks]: they differ by at most one, and within all steps but one not at all."""
    least, longer = divmod(samples, steps * ranks)
    extra = (np.arange(steps * ranks) < longer).astype(np.int64).reshape(steps, ranks)
    return least + (extra if rng is None else extra[rng.permutation(steps)])


def _halve(indices: np.ndarray, places: np.ndarray, lengths: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Order samples so that cutting them into pieces of these lengths gives pieces of like places."""
    if len(lengths) == 1:
        return [indices]
    half = len(lengths) // 2
    half = half // ranks * ranks or half  # the batches of one step stay together
    count = int(lengths[:half].sum())
    along = places[indices, int(np.argmax(np.std(places[indices], axis=0)))]
    order = indices[np.argpartition(along, count)]
    first = _halve(order[:count], places, lengths[:half], ranks)
    return first + _halve(order[count:], places, lengths[half:], ranks)


# Training images varied at random: [H, W, 3] uint8 RGB and a random generator -> a new one of the same form. Sizes are in pixels.

# Principal axes of RGB values (0 to 1) in photos, one a column, and the variance along each: measured on the 2500 train
# images of Pascal VOC 2007, each averaged to 64 x 64 pixels. Nearly brightness, blue against red, green against both.
_COLOR_AXES = np.array([[0.5586, -0.7393, 0.3761], [0.5827, 0.0271, -0.8122], [0.5903, 0.6728, 0.4459]])
_COLOR_VARIANCES = np.array([0.1882, 0.0143, 0.0024])


def random_flip(image: np.ndarray, rng: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """Flip an image left to right, or leave it.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        share: how often it is flipped, 0 to 1.

    Returns:
        [H, W, 3] uint8, C-contiguous; the image itself where it is left and already has this form.

    Example:
        >>> image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
        >>> random_flip(image, np.random.default_rng(0), share=1).tolist()
        [[[3, 4, 5], [0, 1, 2]]]
    """
    checked_size(image, "random_flip")
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < share else image)


def corner_crop(image: np.ndarray, rng: np.random.Generator, side: int = 224) -> np.ndarray:
    """Cut a square from the center or from one of the four corners, each as likely: the paper's training crop.

    For multi-size training the same region is then resized, to 180 x 180 for instance, so that both sizes show the
    same.

    Args:
        image: [H, W, 3] uint8, both sides at least ``side`` (the paper: short side 256). Not modified.
        rng: source of randomness.
        side: of the square, in pixels, at least 1.

    Returns:
        [side, side, 3] uint8, C-contiguous.

    Raises:
        ValueError: an image smaller than the square, or of another form.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.1: corners of the whole image, not of its central square.

    Example:
        >>> corner_crop(np.zeros((256, 300, 3), dtype=np.uint8), np.random.default_rng(0)).shape
        (224, 224, 3)
    """
    height, width = checked_size(image, "corner_crop")
    if side < 1 or min(height, width) < side:
        raise ValueError(f"corner_crop: expected sides of at least {side}, and that at least 1, got {height} x {width}")
    free = (height - side, width - side)
    corners = [(free[0] // 2, free[1] // 2), (0, 0), (0, free[1]), (free[0], 0), free]
    y0, x0 = corners[rng.integers(len(corners))]
    return np.ascontiguousarray(image[y0 : y0 + side, x0 : x0 + side])


def random_region(image: np.ndarray, rng: np.random.Generator, shares: tuple[float, float] = (0.5, 1.0)) -> np.ndarray:
    """Cut a region of random size at a random place, in the shape of the whole image: nothing is distorted.

    The region has the share ``a`` of the image's area, drawn evenly from ``shares``; each side is ``sqrt(a)`` of the
    image's.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        shares: least and largest share of the area, above 0 and up to 1.

    Returns:
        [h, w, 3] uint8, C-contiguous, both sides at least 1; h / w is H / W up to rounding to whole pixels.

    Raises:
        ValueError: shares out of range, or an image of another form.

    Example:
        >>> random_region(np.zeros((300, 400, 3), dtype=np.uint8), np.random.default_rng(0), (0.25, 0.25)).shape
        (150, 200, 3)
    """
    height, width = checked_size(image, "random_region")
    if not 0 < shares[0] <= shares[1] <= 1:
        raise ValueError(f"random_region: expected 0 < least <= largest <= 1, got shares {shares}")
    scale = rng.uniform(*shares) ** 0.5
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    y0, x0 = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return np.ascontiguousarray(image[y0 : y0 + h, x0 : x0 + w])


def vary_light(image: np.ndarray, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    """Shift all pixels alike along the axes in which the colors of photos vary: more or less, bluer or redder light.

    Adds ``sum_i a_i * v_i * e_i`` to the RGB values (0 to 1), with e_i the principal axes of the colors of photos, v_i
    the variance along each, and a_i normal with mean 0 and deviation ``spread``.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        spread: deviation of a_i; 0 changes nothing.

    Returns:
        [H, W, 3] uint8, values cut to 0..255.

    Source: the "color altering" of He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.1, after Krizhevsky, Sutskever,
    Hinton, NIPS 2012, section 4.1. The axes are measured on other photos (see the module).

    Example:
        >>> vary_light(np.full((2, 2, 3), 128, dtype=np.uint8), np.random.default_rng(0), spread=0).max()
        np.uint8(128)
    """
    checked_size(image, "vary_light")
    shift = 255 * _COLOR_AXES @ (rng.normal(scale=spread, size=3) * _COLOR_VARIANCES)
    return cv2.transform(np.ascontiguousarray(image), np.column_stack([np.eye(3), shift]).astype(np.float32))
