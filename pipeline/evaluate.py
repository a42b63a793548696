"""A cache and a run -> COCO AP. Nothing else is opened: no image, no annotation file, no detector."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .contender import Contender, Predict
from .data.coco import Category, contiguous_labels, view_of
from .data.sources import Batch, Cached
from .data.transforms import view_to_original
from .errors import PipelineError, UsageError
from .evaluation import CLASSES, DETAILS, LOST, evaluate_contenders, evaluation_identity, images_to_evaluate
from .files import check_folder
from .heads.base import Masks, Widths
from .masks.coco_eval import PER_CLASS
from .masks.references import box_logits, oracle_logits
from .training.checkpoint import BEST, CONFIG, Run, check_features, load_head
from .training.track import best_step

Reference = Literal["box", "oracle"]
ALL = "all"
"""In place of names: every view of the cache."""


def main(
    *,
    cache: Path,
    run: Path,
    reference: Reference | None = None,
    holdout: int = 0,
    device: str = "cpu",
    force: bool = False,
    best: bool = False,
    views: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate the head of `run` on every image of the cache and write into `run`:

    - metrics.json, which is returned: `bbox` is the AP of the frozen detector by its own scores, `segm` that of the
      masks by theirs (percent), `own_bbox` that of the boxes of a head that tells its own, `boundary` the boundary AP
      of the masks where its package is installed (`masks/boundary.py`), `mask_iou` the mean, over matched detections,
      of the mask's IoU with the ground truth inside the box;
    - results.json, boxes.json and own_boxes.json: masks, the detector's boxes and the head's own as COCO results;
      pycocotools reads them back to the figures of `segm`, `bbox` and `own_bbox`. Those of the head are in one order,
      and but for families with own boxes the detector's too;
    - quality.json: `mask_iou` of each image, over its objects, those that no detection matched counting as zero;
    - metrics/per_class.json, metrics/pr.json (precision over recall), metrics/lost_ap.json (see `masks/lost_ap.py`);
    - of a head for segments panoptic.json, semantic.json and their PNG files, metrics/segments.json (each class) and
      metrics/segment_quality.json (each image).

    `reference` takes the place of the head, in a directory that holds none: `box` fills the boxes, `oracle` is the best
    that 32 x 32 masks in these boxes can do. holdout: only every n-th image, those that a training with `holdout=n`
    left out, for choosing hyper-parameters. A head that was trained on other features is refused, naming the field;
    `force` warns and goes on.
    best: the weights that did best in the evaluations of the training, best.pt, in place of the last.
    views: masks are means over these views of the cache, or `all`, and its first view, which gives boxes, labels and
    detection scores: each mask over the views that show its detection whole (`heads/looks.py`).
    """
    check_folder(run, "--run")
    if reference:
        _check_reference(reference, run, force=force, best=best, views=views)
    source = Cached(cache, device)
    views = _views(source, views)
    if reference:
        contender = Contender(run, _reference(reference, source.categories), maps_read=())
    else:
        contender = _contender(run, source, holdout, force=force, best=best, views=views)
    indices = images_to_evaluate(source, holdout)
    identity = evaluation_identity(source, holdout, indices)
    if best and not reference:
        identity["weights"] = f"best, of step {best_step(run)}"
        print(f"{BEST} is of step {best_step(run)}", file=sys.stderr)
    if reference:
        identity["reference"] = reference
    if views:
        identity["views"] = list(views)
    return evaluate_contenders(source, [contender], indices, identity=identity, errors=True)[run]


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The content of metrics.json as papers print it: a line of figures for each kind."""
    names = list(metrics["segm"])
    rows = [f"{'':8}" + "".join(f"{name:>7}" for name in names)]
    for kind in ("bbox", "own_bbox", "segm", "boundary"):
        if kind in metrics:
            values = ["-" if value is None else f"{value:.1f}" for value in metrics[kind].values()]
            rows.append(f"{kind:8}" + "".join(f"{value:>7}" for value in values))
    for kind in ("panoptic", "semantic"):
        if kind in metrics:
            shown = ((name, value) for name, value in metrics[kind].items() if name != "images")
            rows.append(f"{kind:8} " + ", ".join(f"{k} {'-' if v is None else f'{v:.1f}'}" for k, v in shown))
    if metrics["mask_iou"] is not None:
        rows.append(f"mask IoU in the box {metrics['mask_iou']:.3f}, mean of {metrics['matched']} matched detections")
    return "\n".join(rows)


def lost_in_words(run: Path) -> str:
    """One line on metrics/lost_ap.json of the last evaluation."""
    left: dict[str, float | None] = json.loads((run / DETAILS / LOST).read_text())
    now = left["AP"]
    gains = [
        f"{kind.replace('_', ' ')} {value - now:+.1f}"
        for kind, value in left.items()
        if kind != "AP" and value is not None and now is not None
    ]
    return f"AP gained if made perfect: {', '.join(gains)}" if gains else ""


def classes(run: Path) -> list[dict[str, Any]]:
    """metrics/per_class.json of the last evaluation."""
    return json.loads((run / DETAILS / CLASSES).read_text())


def class_table(run: Path) -> list[dict[str, str]]:
    """metrics/per_class.json of the last evaluation for a person: classes that have objects, best masks first."""
    rows = [row for row in classes(run) if row["objects"]]
    rows.sort(key=lambda row: -row["segm"]["AP"])
    figures = [
        (f"{words} {name}", kind, name) for kind, words in (("segm", "mask"), ("bbox", "box")) for name in PER_CLASS
    ]
    return [
        {
            "class": row["name"],
            "objects": str(row["objects"]),
            **{title: f"{row[kind][name]:.1f}" for title, kind, name in figures},
        }
        for row in rows
    ]


def _check_reference(reference: Reference, run: Path, *, force: bool, best: bool, views: Sequence[str]) -> None:
    """Refuse what says nothing beside a reference, and the run of a head, whose figures it would take the place of."""
    for name, given in (("--force", force), ("--best", best), ("--views", views)):
        if given:
            raise UsageError(f"{name} goes with a head, not with --reference", f"leave out {name} or --reference")
    if (run / CONFIG).exists():
        raise UsageError(
            f"{run} is the run of a head: its figures are not those of a reference",
            f"give the reference a directory of its own: --run {run}-{reference}",
        )


def _views(source: Cached, names: Sequence[str]) -> list[str]:
    """The views of the cache beside the first that are meant; raises PipelineError where an image that is there is not
    there in one."""
    cache = source.cache
    first = cache.views[0]
    views = [view for view in (cache.views if list(names) == [ALL] else dict.fromkeys(names)) if view != first]
    if names and not views:
        raise PipelineError(
            f"'{first}' is the view that every evaluation of {cache.path} looks at, there is none beside it to average",
            f"extract with more views, such as --views {first},hflip,crop1,crop2" if len(cache.views) == 1 else "",
        )
    for view in views:
        if view not in cache.views:
            raise PipelineError(
                f"{cache.path} does not hold the view '{view}', only {', '.join(cache.views)}",
                f"extract with --views {','.join([*cache.views, view])}",
            )
        missing = int((cache.done(first) & ~cache.done(view)).sum())
        if missing:
            raise PipelineError(
                f"{missing} images of {cache.path} are not extracted in the view '{view}' yet",
                "run its `extract` command again",
            )
    return views


def _contender(run: Path, source: Cached, holdout: int, *, force: bool, best: bool, views: Sequence[str]) -> Contender:
    head, trained = load_head(run, source.device, best=best)
    try:
        check_features(trained, source.cache.spec, f"cache {source.cache.path}")
    except PipelineError as error:
        if not force:
            raise PipelineError(error.message, f"{error.hint}; --force evaluates all the same") from None
        _check_widths(trained, source)
        print(f"warning: {error.message}", file=sys.stderr)
    left_out = trained.recipe.train.holdout
    if holdout and left_out != holdout and next(head.parameters(), None) is not None:
        raise PipelineError(
            f"{run} was trained with holdout={left_out}, so it has seen images that holdout={holdout} leaves out",
            f"train with holdout={holdout}, or evaluate on another cache",
        )
    return Contender.of_head(run, head, source, views)


def _check_widths(trained: Run, source: Cached) -> None:
    """What no force can change."""
    mine, theirs = trained.widths, Widths.of_cache(source.cache.spec)
    for field in ("channels", "strides", "encoder", "query_dim", "classes"):
        if getattr(mine, field) != getattr(theirs, field):
            raise PipelineError(
                f"the head does not fit the features of {source.cache.path}: {field} is {getattr(theirs, field)}, "
                f"the head's is {getattr(mine, field)}",
                "train a head on these features",
            )


def _reference(kind: Reference, categories: Sequence[Category]) -> Predict:
    def predict(batch: Batch) -> Masks:
        features, info, truth = batch.features, batch.infos[0], batch.ground_truth[0]
        boxes, labels = features.boxes[0], features.labels[0]
        if kind == "box":
            logits = box_logits(boxes)
        else:
            image_hw, view = (info.height, info.width), view_of(info, batch.views[0])
            boxes_xyxy = view_to_original(boxes, image_hw, view)
            logits = oracle_logits(boxes_xyxy, labels, truth, contiguous_labels(truth, categories), image_hw)
            if view.mirrored:
                logits = logits.flip(-1)
        return Masks(mask_logits=logits, boxes=boxes, scores=features.scores[0], labels=labels)

    return predict
