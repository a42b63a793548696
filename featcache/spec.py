"""What a cache holds and what made it: `CacheSpec`, its JSON form and fingerprint; and the two records per image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from featcache.errors import CacheError, FormatVersionError, UsageError

if TYPE_CHECKING:  # `featcache info` does without
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 1

Codec = Literal["uint8", "fp16", "none"]
CODECS: tuple[Codec, ...] = ("uint8", "fp16", "none")

STORED_DTYPE: dict[Codec, str] = {"uint8": "uint8", "fp16": "float16", "none": "float32"}
"""Type of the stored values of a map, little-endian."""

MAX_ERROR = 0.0025
"""Relative L2 error of block means (`steps.py`) that uint8 may add to a map where fewer than 255 steps suffice."""

_LATER_FIELDS: dict[str, object] = {"band_rows": None, "moments": False}
"""Of a level, with their defaults: who does not use them is called as it was before there were any."""

Difference = tuple[str, object, object]
"""(field, mine, theirs)"""


@dataclass(frozen=True)
class LevelSpec:
    """One stored map, such as "c1" or "e16": its input pixels per cell, its width, and its largest grid.

    `max_hw` is the (h, w) of the image with the most cells; an image may have any h and w with h * w up to that. With
    `band_rows` a map is stored in bands of so many of its rows (of `max_hw`), so that `Cache.window` need not read all
    of it; None stores it in one piece. With `moments` the mean and covariance of its channels are stored beside it.
    """

    name: str
    stride: int
    channels: int
    max_hw: tuple[int, int]
    band_rows: int | None = None
    moments: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").isalnum():
            raise CacheError(f"level name {self.name!r} must be letters, digits and underscores")
        if min(self.stride, self.channels, *self.max_hw, self.band_rows or 1) < 1 or self.band_rows == 0:
            raise CacheError(f"level {self.name!r}: stride, channels, max_hw and band_rows must be positive")
        object.__setattr__(self, "max_hw", (int(self.max_hw[0]), int(self.max_hw[1])))

    @property
    def tokens(self) -> int:
        """Most cells of any image."""
        return self.max_hw[0] * self.max_hw[1]

    @property
    def band_tokens(self) -> int:
        """Cells in a band, whatever the width of the image."""
        return self.tokens if self.band_rows is None else min(self.tokens, self.band_rows * self.max_hw[1])

    @property
    def bands(self) -> int:
        """Bands in a map, the last one padded."""
        return -(-self.tokens // self.band_tokens)


@dataclass(frozen=True)
class CacheSpec:
    """Everything that decides what the arrays of a cache hold.

    `source` says what made the features (detector, weights hash, configuration, transform), `dataset` which images and
    annotations. Both are in the fingerprint; `recipe` (command, categories, library versions, folders) is not.
    `detections` and `query_dim` are the most detections of an image and the width of their queries, 0 for features of a
    model that detects nothing. `further_truth` names what ground truth there is beside the annotations, such as
    "panoptic". `max_error` is for codec uint8, 0 stores every channel in 255 steps; with other codecs it is always 0.
    """

    levels: tuple[LevelSpec, ...]
    detections: int = 0
    query_dim: int = 0
    codec: Codec = "uint8"
    max_error: float = MAX_ERROR
    views: tuple[str, ...] = ("orig",)
    source: dict[str, Any] = field(default_factory=dict[str, Any])
    dataset: dict[str, Any] = field(default_factory=dict[str, Any])
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    further_truth: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("source", "dataset", "recipe"):  # as they will be read back: tuples become lists
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "further_truth", tuple(self.further_truth))
        if self.codec not in CODECS:
            raise CacheError(f"codec {self.codec!r} is not known", f"choose one of {', '.join(CODECS)}")
        if not 0 <= self.max_error < 1:
            raise CacheError(f"max_error is {self.max_error}, must be at least 0 and below 1", "0.0025 is 0.25 %")
        object.__setattr__(self, "max_error", float(self.max_error) if self.codec == "uint8" else 0.0)
        if min(self.detections, self.query_dim) < 0:
            raise CacheError(f"detections {self.detections} and query_dim {self.query_dim} must not be negative")
        for what, names in (("level", [level.name for level in self.levels]), ("view", list(self.views))):
            if not names or len(set(names)) != len(names):
                raise CacheError(f"{what} names must be given and differ, got {names}")
        for view in self.views:
            if view.startswith(".") or not view.translate(str.maketrans("", "", "_-.")).isalnum():
                raise CacheError(f"view name {view!r} must be letters, digits, '-', '_' and, not first, '.'")
        for name in self.further_truth:
            if not name.replace("_", "").isalnum() or self.further_truth.count(name) > 1:
                raise CacheError(f"name {name!r} of a ground truth must be letters, digits, '_', and given once")

    @property
    def level_names(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(level.name for level in self.levels)

    def level(self, name: str) -> LevelSpec:
        """The level of that name; raises CacheError naming those there are."""
        for level in self.levels:
            if level.name == name:
                return level
        raise CacheError(f"no level {name!r} in this cache", f"levels: {', '.join(self.level_names)}")

    def position(self, name: str) -> int:
        """Place of a level in `levels`."""
        return self.levels.index(self.level(name))

    def identity(self) -> dict[str, Any]:
        """The part that two caches must share to be the same cache; what the fingerprint is made of."""
        whole = self.to_json()
        del whole["recipe"]
        return {"format_version": FORMAT_VERSION, **whole}

    @property
    def fingerprint(self) -> str:
        """12 hex digits; equal exactly when `identity` is."""
        return _digest(self.identity())

    @property
    def source_fingerprint(self) -> str:
        """12 hex digits of source and levels without their largest grids: what a trained head is tied to."""
        levels = [[level.name, level.stride, level.channels] for level in self.levels]
        return _digest({"source": self.source, "levels": levels, "query_dim": self.query_dim})

    def differences(self, other: CacheSpec) -> list[Difference]:
        """Fields of the identity that differ, by dotted name, each with my value and the other's."""
        mine, theirs = _flatten(self.identity()), _flatten(other.identity())
        return [
            (name, mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def in_codec(self, codec: Codec | None, max_error: float | None = None) -> CacheSpec:
        """The same in another codec; None keeps a codec, and its `max_error` where the codec stays.

        Raises UsageError for a `max_error` of a codec that adds none.
        """
        codec = codec or self.codec
        check_max_error(codec, max_error)
        if max_error is None:
            max_error = self.max_error if codec == self.codec else MAX_ERROR
        return replace(self, codec=codec, max_error=max_error)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal spec."""
        data = json.loads(json.dumps(asdict(self)))
        for level in data["levels"]:
            for name, default in _LATER_FIELDS.items():
                if level[name] == default:
                    del level[name]
        if not self.max_error:  # called as it was before there was a choice
            del data["max_error"]
        if not self.further_truth:
            del data["further_truth"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CacheSpec:
        """The spec of `to_json`."""
        fields: dict[str, Any] = {"max_error": 0.0, **data}
        fields["levels"] = tuple(LevelSpec(**level) for level in data["levels"])
        return cls(**fields)


def check_max_error(codec: Codec, max_error: float | None) -> None:
    """Raise UsageError for an error that is allowed to a codec which adds none."""
    if max_error and codec != "uint8":
        raise UsageError(
            f"max-error {max_error:g} is of codec uint8, and the codec here is {codec}",
            "leave --max-error out, or add --codec uint8",
        )


def check_format_version(version: object, where: str) -> None:
    """Raise FormatVersionError unless this release reads that version."""
    if version != FORMAT_VERSION:
        raise FormatVersionError(
            f"{where} has cache format version {version}, this release reads version {FORMAT_VERSION}",
            "use the release that wrote it, or extract again",
        )


@dataclass(frozen=True)
class ImageInfo:
    """One image of the data set: its COCO id, its size in pixels, its file name."""

    id: int
    height: int
    width: int
    file_name: str


@dataclass(frozen=True)
class GroundTruth:
    """The k annotations of one image, in the frame of the original image.

    `boxes_xywh` and `areas` are in pixels as COCO gives them; `rles` are compressed COCO counts of that size.
    """

    ids: NDArray[np.int64]  # k
    category_ids: NDArray[np.int64]  # k
    boxes_xywh: NDArray[np.float64]  # k 4
    areas: NDArray[np.float64]  # k
    iscrowd: NDArray[np.bool_]  # k
    rles: list[bytes]  # k

    @classmethod
    def none(cls) -> GroundTruth:
        """Of an image without annotations."""
        import numpy as np

        counts = np.zeros(0, np.int64)
        return cls(counts, counts, np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.bool_), [])

    def __len__(self) -> int:
        return len(self.ids)


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _flatten(data: object, prefix: str = "") -> dict[str, object]:
    if isinstance(data, list) and any(isinstance(value, dict) for value in cast("list[object]", data)):
        data = dict(enumerate(cast("list[object]", data)))
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    flat: dict[str, object] = {}
    for key, value in cast("dict[object, object]", data).items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
