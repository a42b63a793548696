"""The best and the worst images of an evaluation, the ground truth beside the masks, as figures of the page."""

from collections.abc import Sequence

from ..cases import Case
from . import html


def case_figures(cases: Sequence[Case]) -> list[str]:
    """Two grids under headings, as long as each other."""
    found: list[str] = []
    for kind, look in (("best", "good"), ("worst", "bad")):
        figures = [_figure(case, look) for case in cases if case.kind == kind]
        found.append(html.tag("h3", f"The {len(figures)} {kind}"))
        found.append(html.tag("div", *figures, class_="grid cases"))
    return found


def _figure(case: Case, look: str) -> str:
    words = f"Image {case.image_id}: mask IoU {case.mask_iou:.2f}, {case.matched} of {case.objects} objects found"
    shown = ((case.truth, "ground truth"), (case.masks, "masks of the head"))
    pictures = [
        html.tag("div", html.picture(image, f"image {case.image_id}, {what}"), html.tag("div", what, class_="about"))
        for image, what in shown
    ]
    return html.tag(
        "figure", html.tag("figcaption", html.text(words)), html.tag("div", *pictures, class_="pair"), class_=look
    )
