"""Mean IoU of the classes of pixels, image by image, with the figures that detectron2 prints beside it."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
"""Label of each pixel, "h w", -1 where it has none."""


class MeanIoU:
    """A matrix of confusion over all pixels of the ground truth that have a label."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes + 1), dtype=np.int64)
        """Label in the ground truth x label found, none last."""

    def add(self, truth: Labels, found: Labels) -> None:
        """One image."""
        count = len(self.confusion)
        known = truth >= 0
        wanted, told = truth[known].astype(np.int64), found[known].astype(np.int64)
        told[told < 0] = count
        pairs = np.bincount(wanted * (count + 1) + told, minlength=self.confusion.size)
        self.confusion += pairs.reshape(self.confusion.shape)

    def take(self, other: "MeanIoU") -> None:
        """The images that another has seen, too."""
        self.confusion += other.confusion

    def figures(self) -> dict[str, float | None]:
        """In percent, None where the ground truth has no pixel: `mIoU`, mean over the classes that it has; `fwIoU`,
        each weighed by its pixels; `mACC`, mean share of a class that is found; `pACC`, share of all pixels."""
        hits, truth, found = self._totals()
        if not truth.sum():
            return dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"))
        has = truth > 0
        iou, share = hits[has] / (truth + found - hits)[has], truth[has] / truth.sum()
        figures = {
            "mIoU": iou.mean(),
            "fwIoU": (iou * share).sum(),
            "mACC": (hits[has] / truth[has]).mean(),
            "pACC": hits.sum() / truth.sum(),
        }
        return {name: round(100 * float(value), 4) for name, value in figures.items()}

    def classes(self) -> list[float | None]:
        """IoU of each class in percent, None where the ground truth has no such pixel."""
        hits, truth, found = self._totals()
        return [
            round(100 * float(h / (t + f - h)), 4) if t else None for h, t, f in zip(hits, truth, found, strict=True)
        ]

    def _totals(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each class: pixels right, in the ground truth, and found."""
        square = self.confusion[:, :-1]
        return np.diag(square), self.confusion.sum(1), square.sum(0)
