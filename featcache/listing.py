"""`ls`: one row per image of a cache, from its tables alone. Columns are read and counted whole; no torch, no maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.header import Header, read_header


def image_rows(
    path: str | os.PathLike[str], *, missing: bool = False, min_score: float = 0.3, limit: int | None = None
) -> list[dict[str, Any]]:
    """One row per image; with `missing`, only images that some view does not have; at most the first `limit`.

    `boxes` counts the detections of the first view that score at least `min_score`, `score` is the best of them all;
    both null where the image is not extracted. `categories` are those annotated, by name.
    """
    header = read_header(path)
    fields = field_names(header.spec.views)
    done = {view: header.done(view) for view in header.spec.views}
    wanted = ~np.logical_and.reduce([*done.values()]) if missing else np.ones(header.images, bool)
    chosen = np.flatnonzero(wanted)[:limit]
    names = _cut(header.column("images/name_end"), chosen)
    text = header.column("images/name_bytes").tobytes()
    truth = _cut(header.column("ground_truth/end"), chosen)
    extracted = done[header.spec.views[0]][chosen]
    boxes, best = _scores(header, chosen, min_score)
    columns: list[Sequence[Any]] = [
        chosen.tolist(),
        header.column("images/id")[chosen].tolist(),
        header.column("images/height")[chosen].tolist(),
        header.column("images/width")[chosen].tolist(),
        (truth[1] - truth[0]).tolist(),
        [value if there else None for value, there in zip(boxes.tolist(), extracted, strict=True)],
        [value if there else None for value, there in zip(best.tolist(), extracted, strict=True)],
        *(flags[chosen].tolist() for flags in done.values()),
        _categories(header, *truth),
        [text[start:end].decode() for start, end in zip(*(ends.tolist() for ends in names), strict=True)],
    ]
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def field_names(views: Sequence[str]) -> list[str]:
    """The keys of a row, in the order of the columns."""
    flags = [f"done_{view}" for view in views]
    names = ["index", "image_id", "height", "width", "annotations", "boxes", "score"]
    return [*names, *flags, "categories", "file_name"]


def _cut(ends: NDArray[np.int64], chosen: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the part of each chosen image begins and ends in a table of all."""
    return np.concatenate([np.zeros(1, np.int64), ends])[chosen], ends[chosen]


def _scores(
    header: Header, chosen: NDArray[np.intp], min_score: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Detections of at least `min_score`, and the best score to three places, in the first view."""
    view, reach = header.spec.views[0], int(chosen[-1]) + 1 if len(chosen) else 0
    scores, counts = header.rows(view, "scores", "<f4", reach), header.rows(view, "count", "<i4", reach)
    if scores is None or counts is None:  # rewritten by another program
        scores, counts = _read_one_by_one(header, view, chosen)
    else:
        scores, counts = scores[chosen], counts[chosen]
    real = np.less(np.arange(header.spec.detections), cast("NDArray[np.int32]", counts)[:, None])
    boxes = np.count_nonzero(real & (scores >= min_score), axis=1)
    best = cast("NDArray[np.float32]", np.where(real, scores, np.float32(0)).max(1, initial=0.0))
    return boxes, best.astype(np.float64).round(3)


def _read_one_by_one(
    header: Header, view: str, chosen: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As `Cache` reads them; zeros where the image is not extracted."""
    from featcache.reader import Cache

    cache = Cache(header.path)
    done = cache.done(view)
    scores = np.zeros((len(chosen), header.spec.detections), np.float32)
    counts = np.zeros(len(chosen), np.int32)
    for row, index in enumerate(chosen.tolist()):
        if done[index]:
            stored = cache.read_rows(index, view)
            scores[row], counts[row] = stored["scores"], stored["count"]
    return scores, counts


def _categories(header: Header, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[list[str]]:
    """Sorted names of the categories of the annotations [start, end) of each image, each once."""
    lengths = ends - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    rows = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(which))
    known = {int(one["id"]): str(one["name"]) for one in header.spec.recipe.get("categories", [])}
    ids, code = np.unique(header.column("ground_truth/category_id")[rows], return_inverse=True)
    of_id = [known.get(one, str(one)) for one in ids.tolist()]
    names = sorted(set(of_id))
    rank = np.array([names.index(name) for name in of_id], np.int64)
    pairs = np.unique(which * len(names) + rank[code]) if names else np.zeros(0, np.int64)
    words = [names[one] for one in (pairs % max(len(names), 1)).tolist()]
    bounds = np.searchsorted(pairs, np.arange(len(starts) + 1) * len(names)).tolist()
    return [words[start:end] for start, end in pairwise(bounds)]
