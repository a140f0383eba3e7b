"""Which steps a training takes next: what both trainings of a detector ask, so that a stopped one goes on where it stood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

if TYPE_CHECKING:
    import lightning as L


class Steps(Sampler[int]):
    """The numbers of the steps from where training stands to its next checkpoint.

    Where it stands is asked of the module and not counted here: where Lightning resumes, it counts epochs one too few. It
    has no length, as the last stretch may be shorter.

    Args:
        total: steps of the whole training.
        stretch: steps from one checkpoint to the next.
        module: what is trained.

    Example:
        >>> from types import SimpleNamespace
        >>> list(Steps(10, 4, SimpleNamespace(global_step=4))), list(Steps(10, 4, SimpleNamespace(global_step=8)))
        ([4, 5, 6, 7], [8, 9])
    """

    def __init__(self, total: int, stretch: int, module: L.LightningModule) -> None:
        super().__init__()
        self.total, self.stretch, self.module = total, stretch, module

    def __iter__(self) -> Iterator[int]:
        done = self.module.global_step
        return iter(range(done, min(self.total, (done // self.stretch + 1) * self.stretch)))
