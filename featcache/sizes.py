"""Bytes: how many a cache will take, how many are free, how fast they are written."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache import codecs
from featcache.chunks import encode_bands, index_bytes
from featcache.direct import read_chunks
from featcache.disk import walk
from featcache.entry import Entry
from featcache.errors import CacheError
from featcache.layout import CHECKSUM_ROW, DONE_ROW, images_per_file, row_arrays
from featcache.reader import Cache
from featcache.source import local_directory, open_source
from featcache.spec import CacheSpec, Codec, LevelSpec
from featcache.writer import CacheWriter

_SAMPLE = 64  # images of a sample that are looked at, and written by the probe
_NAME_BYTES = 32  # of a file's entry in its directory
WARN_FRACTION = 0.9
"""Share of the free space above which an estimate warns."""


@dataclass(frozen=True)
class Estimate:
    """What a cache of `images` images will take, judged by a sample; bytes as `du` will count them."""

    images: int
    views: int
    codec: Codec
    shard: int
    bytes_per_image: float  # of one view
    total_bytes: int
    files: int
    free_bytes: int
    images_per_second: float | None  # written and flushed, one view; None without a probe
    hours: float | None

    @property
    def fits(self) -> bool:
        """Whether it takes no more than WARN_FRACTION of the free space."""
        return self.total_bytes <= WARN_FRACTION * self.free_bytes


def estimate(
    sample: Cache,
    images: int,
    *,
    codec: Codec | None = None,
    max_error: float | None = None,
    shard: int | None = None,
    at: Path,
    probe: bool = True,
) -> Estimate:
    """Judge a cache of `images` images by a small one of the same detector, to be written under the directory `at`.

    The probe writes images of the sample there, flushes and removes them. Raises CacheError for a codec that keeps more
    than the sample's, or another `max_error` (that of `CacheSpec`): what the sample lost cannot be estimated.
    """
    spec, shard = sample.spec.in_codec(codec, max_error), shard or images_per_file(sample.spec, images)
    codec = spec.codec
    if (codec, spec.max_error) != (sample.spec.codec, sample.spec.max_error) and sample.spec.codec != "none":
        told = codec if codec != sample.spec.codec else f"{codec} with another max_error"
        raise CacheError(
            f"a sample in {sample.spec.codec} cannot tell the size of {told}",
            "extract the sample with --codec none, it serves for every codec",
        )
    pairs: list[tuple[int, str]] = [
        (i, view) for view in sample.views for i in np.flatnonzero(sample.done(view)).tolist()
    ]
    if not pairs:
        raise CacheError(f"no image of the sample {sample.path} is extracted", "extract some with --limit")
    pairs = [pairs[int(i)] for i in np.unique(np.linspace(0, len(pairs) - 1, _SAMPLE).round())]
    block = os.statvfs(at).f_frsize
    views, shards = len(sample.views), math.ceil(images / shard)
    chunk_bytes = _chunk_bytes(sample, pairs, spec)
    maps = sum(_shard_bytes(sizes, images, shard, block) for sizes in chunk_bytes.values())
    rows, row_files = _row_bytes(spec, images, block)
    fixed, tables = _fixed_bytes(local_directory(sample.path))
    names = (shards * len(chunk_bytes) + row_files) * _NAME_BYTES
    total = int(views * (maps + rows + names) + fixed + tables * images / len(sample))
    rate = _probe(sample, pairs, spec, shard, at) if probe else None
    return Estimate(
        images=images,
        views=views,
        codec=codec,
        shard=shard,
        bytes_per_image=total / images / views,
        total_bytes=total,
        files=views * (shards * len(chunk_bytes) + row_files),
        free_bytes=shutil.disk_usage(at).free,
        images_per_second=rate,
        hours=None if rate is None else images * views / rate / 3600,
    )


def _chunk_bytes(sample: Cache, pairs: Sequence[tuple[int, str]], spec: CacheSpec) -> dict[str, list[int]]:
    """Stored bytes of the chunk of each level, for each pair."""
    sizes: dict[str, list[int]] = {level.name: [] for level in sample.spec.levels}
    source = open_source(sample.path)
    for index, view in pairs:
        if spec.codec == sample.spec.codec:
            for name, files in sample.files(view).maps.items():
                bands = range(files.level.bands)
                sizes[name].append(_image_bytes([len(data) for data in read_chunks(source, files, index, bands)]))
        else:
            entry = sample.entry(index, view)
            for level in sample.spec.levels:
                sizes[level.name].append(_encoded_bytes(entry, level, spec))
    return sizes


def _encoded_bytes(entry: Entry, level: LevelSpec, spec: CacheSpec) -> int:
    values = entry.maps[level.name]
    tokens = codecs.encode(spec.codec, values, *codecs.channel_range(values), max_error=spec.max_error).tokens
    candidates = [tokens, codecs.add_delta(tokens)] if spec.codec == "uint8" and level.bands == 1 else [tokens]
    return min(
        _image_bytes(
            [len(data) for data in encode_bands(rows.flatten(0, 1).numpy(), level, compress=spec.codec != "none")]
        )
        for rows in candidates
    )


def _image_bytes(bands: Sequence[int]) -> int:
    """Bytes of a map from those of its bands; each beyond the first takes an entry of the index more."""
    return sum(bands) + index_bytes(len(bands)) - index_bytes(1)


def _shard_bytes(sizes: Sequence[int], images: int, shard: int, block: int) -> float:
    """Bytes of all map files of a level, each rounded up to whole blocks."""
    if shard == 1:
        return images * float(np.mean([math.ceil(size / block) * block for size in sizes]))
    mean_file = float(np.mean(sizes)) * shard + index_bytes(shard) + block / 2  # half a block is lost on average
    return images / shard * mean_file


def _row_bytes(spec: CacheSpec, images: int, block: int) -> tuple[int, int]:
    """Bytes and files of the row arrays of a view."""
    total = files = 0
    for row in (*row_arrays(spec).values(), CHECKSUM_ROW, DONE_ROW):
        rows = row.chunk_rows(images)
        count = math.ceil(images / rows)
        total += count * math.ceil(rows * row.row_bytes / block) * block
        files += count
    return total, files


def _fixed_bytes(path: Path) -> tuple[int, int]:
    """Bytes of the sample that do not grow with the images (metadata, directories), and of its tables, which do."""
    fixed = tables = 0
    for entry in walk(path):
        used = entry.stat(follow_symlinks=False).st_blocks * 512
        if entry.is_dir(follow_symlinks=False) or entry.name == "zarr.json":
            fixed += used
        elif not entry.path.startswith(f"{path}/views/"):
            tables += entry.stat(follow_symlinks=False).st_size
    return fixed, tables


def _probe(sample: Cache, pairs: Sequence[tuple[int, str]], spec: CacheSpec, shard: int, at: Path) -> float:
    """Images per second written and flushed, from putting the sampled images into a cache under `at`."""
    entries = [sample.entry(index, view) for index, view in pairs]
    images = [replace(sample.images[0], id=number) for number in range(len(entries))]
    truths = [sample.ground_truth(0)] * len(entries)
    spec = replace(spec, views=("probe",))
    with (
        tempfile.TemporaryDirectory(dir=at, prefix=".featcache-probe-") as folder,
        CacheWriter(Path(folder) / "cache", spec, images, truths, shard=shard) as writer,
    ):
        started = time.perf_counter()
        for number, entry in enumerate(entries):
            writer.put(number, "probe", **entry.features())
        writer.flush()
        return len(entries) / (time.perf_counter() - started)
