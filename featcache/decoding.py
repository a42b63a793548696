"""Stored values of one image as float32 tensors on any device: what a reader makes of a `Record`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache import codecs
from featcache.entry import Entry
from featcache.layout import MapFiles, ViewFiles
from featcache.moments import Moments
from featcache.record import Record
from featcache.spec import CacheSpec, GroundTruth, ImageInfo


def decode_record(
    record: Record,
    spec: CacheSpec,
    view: ViewFiles,
    info: ImageInfo,
    ground_truth: GroundTruth,
    device: torch.device | str = "cpu",
) -> Entry:
    """The entry of stored values, decoded on a device; may overwrite the record's maps."""
    rows = record.rows
    count = int(rows["count"])
    maps: dict[str, Tensor] = {}
    for name, tokens in record.tokens.items():
        h, w = record.level_hw(spec.position(name))
        if name in record.read:
            maps[name] = _decode_runs(tokens, record.read[name], spec, view.maps[name], rows, device).unflatten(
                1, (h, w)
            )
        else:
            maps[name] = decode_map(tokens.reshape(h, w, -1), spec, view.maps[name], rows, device)
    height, width = rows["input_hw"].tolist()
    return Entry(
        index=record.index,
        view=record.view,
        info=info,
        input_hw=(height, width),
        maps=maps,
        queries=_moved(rows["queries"][:count], device),
        boxes=_moved(rows["boxes"][:count], device),
        scores=_moved(rows["scores"][:count], device),
        labels=_moved(rows["labels"][:count], device).long(),
        ground_truth=ground_truth,
        moments={
            name: Moments.unpacked(*(_moved(rows[f"{what}/{name}"], device) for what in ("mean", "covariance")))
            for name in record.tokens
            if spec.level(name).moments
        },
        partial=frozenset(record.read),
    )


def decode_map(
    tokens: NDArray[Any],  # h w c
    spec: CacheSpec,
    files: MapFiles,
    rows: Mapping[str, NDArray[Any]],
    device: torch.device | str = "cpu",
    out: Tensor | None = None,
) -> Tensor:
    """A map "c h w" of its tokens, or its uppermost rows; for `out` see `codecs.decode`. May overwrite the tokens."""
    names = ("scale", "offset") if spec.codec == "uint8" else ()
    affine = [_moved(rows[f"{what}/{files.level.name}"], device) for what in names] or [None, None]
    return codecs.decode(_moved(tokens, device), *affine, delta=bool(files.delta), out=out)


def _decode_runs(
    tokens: NDArray[Any],  # t c
    runs: Sequence[range],
    spec: CacheSpec,
    files: MapFiles,
    rows: Mapping[str, NDArray[Any]],
    device: torch.device | str,
) -> Tensor:
    """These tokens decoded, the others zero: "c t", channels last in memory. Maps in bands are never differences."""
    if torch.device(device).type == "cpu":  # numpy's zeros cost nothing before they are read
        values = torch.as_tensor(np.zeros(tokens.shape, np.float32))
    else:
        values = torch.zeros(tokens.shape, device=device)
    for run in runs:
        here = slice(run.start, run.stop)
        decode_map(tokens[None, here], spec, files, rows, device, values[None, here])
    return values.T


def _moved(values: NDArray[Any], device: torch.device | str) -> Tensor:
    return torch.as_tensor(values).to(device, non_blocking=True)
