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
    words = f"Image {case.image_id}: {case.words}"
    what = "masks" if case.figure == "mask_iou" else "segments"
    shown = ((case.truth, "ground truth"), (case.masks, f"{what} of the head"))
    pictures = [
        html.tag("div", html.picture(image, f"image {case.image_id}, {name}"), html.tag("div", name, class_="about"))
        for image, name in shown
    ]
    return html.tag(
        "figure", html.tag("figcaption", html.text(words)), html.tag("div", *pictures, class_="pair"), class_=look
    )
