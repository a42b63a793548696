"""What is wrong with a cache as a whole: what describes it, its tables, its done flags; not what is with one image."""

from __future__ import annotations

import numpy as np

from featcache import store
from featcache.errors import DamagedError
from featcache.layout import CHECKSUM_ROW, DONE_ROW, map_path, row_arrays, view_path
from featcache.reader import Cache
from featcache.source import open_source
from featcache.spec import STORED_DTYPE, CacheSpec
from featcache.tables import required_files, table_paths


def problems(cache: Cache) -> list[str]:
    """A sentence for each; images are only to be read where there is none."""
    found = [*_array_problems(cache), *_fingerprint_problems(cache), *_table_problems(cache)]
    return found or _flag_problems(cache)


def _array_problems(cache: Cache) -> list[str]:
    """Arrays of the views that are absent, or of another shape or type than the spec asks for."""
    group = store.open_group(cache.path)
    found: list[str] = []
    for path, (shape, dtype) in _expected_arrays(cache.spec, len(cache)).items():
        try:
            array = store.open_array(group, path)
        except DamagedError as error:
            found.append(error.what)
            continue
        if array.shape != shape or array.dtype != np.dtype(dtype):
            found.append(f"array {path} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    return found


def _expected_arrays(spec: CacheSpec, images: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array of the views."""
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for view in spec.views:
        for row in (*row_arrays(spec).values(), CHECKSUM_ROW, DONE_ROW):
            expected[f"{view_path(view)}/{row.name}"] = (images, *row.shape), row.dtype
        for level in spec.levels:
            expected[map_path(view, level.name)] = (images, level.tokens, level.channels), STORED_DTYPE[spec.codec]
    return expected


def _fingerprint_problems(cache: Cache) -> list[str]:
    if cache.stored_fingerprint == cache.spec.fingerprint:
        return []
    return [f"fingerprint {cache.stored_fingerprint} is not that of the spec, {cache.spec.fingerprint}"]


def missing_tables(path: str, spec: CacheSpec) -> list[str]:
    """Tables of images and ground truth, or files of them, that are missing; zarr takes such files for zeros."""
    group, source = store.open_group(path), open_source(path)
    found: list[str] = []
    for table in table_paths(spec):
        try:
            array = store.open_array(group, table)
        except DamagedError as error:
            found.append(error.what)
            continue
        about = array.attrs.asdict().get(store.ATTRIBUTE, {})
        keys = required_files(table, array.metadata.to_dict(), about, spec)
        found += [f"{key} is missing" for key in keys if not source.exists(key)]
    return found


def _table_problems(cache: Cache) -> list[str]:
    """Tables of images and ground truth of which a file is missing, or that do not read."""
    found = missing_tables(cache.path, cache.spec)
    if found:
        return found
    group = store.open_group(cache.path)
    for name in (None, *cache.spec.further_truth):
        what = "ground truth" if name is None else f"ground truth {name!r}"
        try:
            images = len(store.read_ground_truth(group, name))
        except DamagedError as error:
            found.append(f"{what} does not read: {error.what}")
        else:
            if images != len(cache):
                found.append(f"{what} of {images} images, {len(cache)} images")
    return found


def _flag_problems(cache: Cache) -> list[str]:
    """Flags that do not read, and what must be known before the first of them is set."""
    found: list[str] = []
    for view in cache.views:
        try:
            done = cache.done(view).any()
        except DamagedError as error:
            found.append(f"done flags of view {view} do not read: {error.what}")
            continue
        for files in cache.files(view).maps.values() if done and cache.spec.codec == "uint8" else ():
            if files.delta is None:
                found.append(f"{files.path}/zarr.json does not say whether rows are stored as differences")
    return found
