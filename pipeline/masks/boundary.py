"""Boundary AP: COCO's figures where a mask must also have its outline right (Cheng et al. 2021, Boundary IoU).

Beside pycocotools, by faster-coco-eval (extra `boundary`). The overlap of a pair is the lesser of its mask IoU and the
IoU of what lies within 2 % of the image's diagonal from either outline, inside it; crowd regions keep the mask's alone.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from pycocotools.coco import COCO

from .coco_eval import FIGURES, Figures, detections, percent
from .results import Result


def boundary_known() -> bool:
    """Whether the package is installed."""
    return find_spec("faster_coco_eval") is not None


def boundary_figures(truth: COCO, results: Sequence[Result]) -> Figures:
    """The twelve figures by name, in percent; None where the ground truth has no object of that size.

    results: with `segmentation`. Sizes are areas of masks. Raises ModuleNotFoundError without the package.
    """
    return _figures(truth, results, "boundary")


def _figures(truth: COCO, results: Sequence[Result], kind: str) -> Figures:
    import faster_coco_eval as faster

    # it writes into the annotations that it is given
    judged = [
        faster.COCO({**truth.dataset, "annotations": [dict(one) for one in annotations]})
        for annotations in (truth.dataset["annotations"], detections(results, "segm"))
    ]
    evaluation = faster.COCOeval_faster(*judged, iouType=kind)  # pyright: ignore[reportArgumentType]
    evaluation.run()
    return {name: percent(float(value)) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
