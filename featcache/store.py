"""The only file that imports zarr: creates the arrays of a cache, opens them, reads what needs no direct path."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numpy.typing import NDArray

from featcache import tables, truth, zstd
from featcache.errors import CacheError, DamagedError, no_cache_at
from featcache.files import replace_file, sync
from featcache.layout import (
    ATTRIBUTE,
    CHECKSUM_ROW,
    DONE_ROW,
    MapFiles,
    RowArray,
    RowFiles,
    ViewFiles,
    map_path,
    row_arrays,
    view_path,
)
from featcache.source import is_url, unreachable
from featcache.spec import FORMAT_VERSION, STORED_DTYPE, CacheSpec, GroundTruth, ImageInfo, LevelSpec

_KEYS = {"name": "default", "configuration": {"separator": "."}}
TOP_NAMES = ("zarr.json", "images", truth.GROUP, truth.FURTHER, "views")
"""What `create` puts into the directory of a cache."""
_FLAT_CHUNK_BYTES = 16 << 20

DECODE = {
    "uint8": "tokens = array[i][: h * w].reshape(h, w, c); if delta: tokens = cumsum(tokens, axis=0, dtype=uint8); "
    "map = tokens * scale[i] + offset[i]",
    "fp16": "map = array[i][: h * w].reshape(h, w, c)",
    "none": "map = array[i][: h * w].reshape(h, w, c)",
}


class _RemoteStore(zarr.storage.FsspecStore):
    """zarr's store of an fsspec URL, with errors for people where it cannot be asked."""

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().get(key, *arguments, **options)
        except Exception as error:
            raise unreachable(f"{self.path}/{key}", error) from error


def create(
    root: Path,
    spec: CacheSpec,
    images: Sequence[ImageInfo],
    truths: Mapping[str | None, Sequence[GroundTruth]],
    shard: int,
) -> None:
    """Write every array of a new cache under `root`; the root attributes, written last, make it a cache.

    truths: the annotations of each image under None, further ground truths under their names.
    """
    group = cast(Any, zarr).open_group(zarr.storage.LocalStore(root), mode="a", zarr_format=3)
    found = {
        tables.IMAGES: tables.to_table(images),
        **{truth.group_of(name): truth.to_table(truths[name]) for name in truths},
    }
    for path, table in found.items():
        for name, values in table.items():
            _write_flat(group, f"{path}/{name}", values)
    for view in spec.views:
        for row in (*row_arrays(spec).values(), CHECKSUM_ROW, DONE_ROW):
            _create_rows(group, f"{view_path(view)}/{row.name}", row, len(images))
        for level in spec.levels:
            _create_map(group, spec, view, level.name, len(images), shard)
    sync(root.rglob("*"))
    header = {"format_version": FORMAT_VERSION, "fingerprint": spec.fingerprint, "shard": shard, "spec": spec.to_json()}
    set_attribute(root, header)


def set_attribute(directory: Path, value: dict[str, Any]) -> None:
    """Replace our attribute of the group or array in `directory`, in one durable step."""
    path = directory / "zarr.json"
    document = json.loads(path.read_bytes())
    document["attributes"] = {**document.get("attributes", {}), ATTRIBUTE: value}
    replace_file(path, json.dumps(document, indent=2).encode())


def open_group(place: str | os.PathLike[str]) -> zarr.Group:
    """The zarr group at a path or fsspec URL; raises NotACacheError, and CacheError where a URL cannot be asked."""
    try:
        store = _RemoteStore.from_url(str(place), read_only=True) if is_url(place) else str(place)
        return cast(Any, zarr).open_group(store, mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_cache_at(place) from error
    except json.JSONDecodeError as error:
        raise CacheError(f"{place}/zarr.json is damaged: it is no JSON", "extract the cache again") from error


def read_header(group: zarr.Group) -> dict[str, Any] | None:
    """Our attribute of the root group; None where there is no finished cache."""
    return cast("dict[str, Any] | None", group.attrs.asdict().get(ATTRIBUTE))


def open_array(group: zarr.Group, path: str) -> Any:
    """An array of a cache; raises DamagedError naming it, or the file that describes it."""
    place = getattr(group.store, "root", None) or getattr(group.store, "path", "")
    where, hint, file = f"cache {place}", f"featcache verify {place}", f"{path}/zarr.json"
    try:
        array = group[path]
    except KeyError as error:
        raise DamagedError(f"array {path} is missing", where, hint) from error
    except OSError as error:
        raise DamagedError(f"{file}: {error.strerror}", where, hint) from error
    except (ValueError, TypeError, AttributeError) as error:  # no JSON, or none that describes an array
        raise DamagedError(f"{file} is damaged: {error}", where, hint) from error
    if not isinstance(array, zarr.Array):
        raise DamagedError(f"{file} is damaged: it describes no array", where, hint)
    return cast(Any, array)


def read_array(group: zarr.Group, path: str) -> NDArray[Any]:
    """A whole array."""
    return np.asarray(open_array(group, path)[...])


def read_row(group: zarr.Group, path: str, index: int, part: slice | None = None) -> NDArray[Any]:
    """Row `index` of an array, or part of it, by plain zarr-python."""
    array = open_array(group, path)
    return np.asarray(array[index] if part is None else array[index, part])


def open_view(group: zarr.Group, spec: CacheSpec, view: str) -> ViewFiles:
    """Where the arrays of a view lie, and which of them the direct path can read."""
    rows = {row.name: _open_rows(group, view, row) for row in (*row_arrays(spec).values(), CHECKSUM_ROW, DONE_ROW)}
    checksum, done = rows.pop(CHECKSUM_ROW.name), rows.pop(DONE_ROW.name)
    maps = {level.name: _open_map(group, spec, view, level) for level in spec.levels}
    return ViewFiles(rows, checksum, done, maps)


def _open_rows(group: zarr.Group, view: str, row: RowArray) -> RowFiles:
    path = f"{view_path(view)}/{row.name}"
    array = open_array(group, path)
    direct = _codec_names(array) == ["bytes"] and _has_our_keys(array)
    return RowFiles(row, path, chunk_rows=array.chunks[0], direct=direct)


def _open_map(group: zarr.Group, spec: CacheSpec, view: str, level: LevelSpec) -> MapFiles:
    path = map_path(view, level.name)
    array = open_array(group, path)
    compress = spec.codec != "none"
    codecs = ["bytes", "zstd", "crc32c"] if compress else ["bytes", "crc32c"]
    shard = array.shards[0] if array.shards else 1
    return MapFiles(
        level,
        path,
        shard=shard,
        compress=compress,
        delta=array.attrs.asdict().get(ATTRIBUTE, {}).get("delta"),
        direct=_codec_names(array) == codecs
        and _has_our_keys(array)
        and (array.chunks, array.shards) == _map_chunks(level, shard),
    )


def _map_chunks(level: LevelSpec, shard: int) -> tuple[tuple[int, int, int], tuple[int, int, int] | None]:
    """Shape of a chunk, and of a file of more than one chunk."""
    file = (shard, level.bands * level.band_tokens, level.channels)
    return (1, level.band_tokens, level.channels), file if shard * level.bands > 1 else None


def _codec_names(array: Any) -> list[str] | None:
    """Names of the codecs of a chunk, little-endian throughout, seen through the sharding codec; None for any other."""
    codecs = list(array.metadata.to_dict()["codecs"])
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        if shard["index_location"] != "end" or [codec["name"] for codec in shard["index_codecs"]] != [
            "bytes",
            "crc32c",
        ]:
            return None
        codecs = list(shard["codecs"])
    if any(codec.get("configuration", {}).get("endian") == "big" for codec in codecs):
        return None
    return [codec["name"] for codec in codecs]


def _has_our_keys(array: Any) -> bool:
    return array.metadata.to_dict()["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}


def read_image_table(group: zarr.Group) -> list[ImageInfo]:
    """All images, in index order; raises DamagedError."""
    with _as_damage("image table", "copy images/ from a backup, or extract again elsewhere"):
        return tables.from_table(lambda name: read_array(group, f"{tables.IMAGES}/{name}"))


def read_ground_truth(group: zarr.Group, name: str | None = None) -> list[GroundTruth]:
    """Annotations of all images, in index order; with a name, that further ground truth; raises DamagedError."""
    where = truth.group_of(name)
    with _as_damage(f"table {where}", f"copy {where}/ from a backup, or extract again elsewhere"):
        return truth.from_table(lambda array: read_array(group, f"{where}/{array}"))


@contextlib.contextmanager
def _as_damage(where: str, hint: str) -> Generator[None]:
    """What goes wrong when a table is read, as a DamagedError."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(error.what, where, hint) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedError(str(error), where, hint) from error


def _write_flat(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    rows = max(1, min(len(values), _FLAT_CHUNK_BYTES // (values.itemsize * int(np.prod(values.shape[1:])))))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(rows, *values.shape[1:]),
        compressors=_compressors(compress=True),
        chunk_key_encoding=cast(Any, _KEYS),
        fill_value=0,
        attributes={ATTRIBUTE: {tables.WHOLE: True}},
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    if len(values):
        array[...] = values


def _create_rows(group: zarr.Group, path: str, row: RowArray, images: int) -> None:
    group.create_array(
        path,
        shape=(images, *row.shape),
        dtype=row.dtype,
        chunks=(row.chunk_rows(images), *(max(1, side) for side in row.shape)),
        compressors=None,
        chunk_key_encoding=cast(Any, _KEYS),
        fill_value=0,
        overwrite=True,
    )


def _create_map(group: zarr.Group, spec: CacheSpec, view: str, level_name: str, images: int, shard: int) -> None:
    level = spec.level(level_name)
    chunks, shards = _map_chunks(level, shard)
    group.create_array(
        map_path(view, level_name),
        shape=(images, level.tokens, level.channels),
        dtype=STORED_DTYPE[spec.codec],
        chunks=chunks,
        shards=shards,
        compressors=_compressors(compress=spec.codec != "none"),
        chunk_key_encoding=cast(Any, _KEYS),
        fill_value=0,
        attributes={ATTRIBUTE: map_attribute(spec, view, level_name, delta=None)},
        overwrite=True,
    )


def map_attribute(spec: CacheSpec, view: str, level_name: str, *, delta: bool | None) -> dict[str, Any]:
    """What a map array says of itself, enough to read it without our code. `delta` is null until the first images."""
    group, index = view_path(view), spec.position(level_name)
    attribute: dict[str, Any] = {
        "codec": spec.codec,
        "stride": spec.level(level_name).stride,
        "h_w": f"{group}/level_hw, row i, entry {index}",
        "decode": DECODE[spec.codec],
    }
    if spec.codec == "uint8":
        attribute |= {
            "delta": delta,
            "max_error": spec.max_error,
            "scale": f"{group}/scale/{level_name}",
            "offset": f"{group}/offset/{level_name}",
        }
    return attribute


def _compressors(*, compress: bool) -> list[Any]:
    checksum = zarr.codecs.Crc32cCodec()
    return [zarr.codecs.ZstdCodec(level=zstd.LEVEL, checksum=False), checksum] if compress else [checksum]
