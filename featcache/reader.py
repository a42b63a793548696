"""`Cache`: reads what a `CacheWriter` wrote, from a directory or an fsspec URL; maps come back as float32 tensors."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache import codecs, store
from featcache.bands import bands_under, token_runs
from featcache.decoding import decode_map, decode_record
from featcache.direct import read_bands
from featcache.entry import Entry, Wanted
from featcache.errors import CacheError, DamagedError, NotDoneError, unfinished_cache
from featcache.layout import RowFiles, ViewFiles
from featcache.record import Record, rows_checksum
from featcache.rows import read_all, read_row_of_each
from featcache.source import open_source
from featcache.spec import CacheSpec, GroundTruth, ImageInfo, check_format_version

Buffers = Mapping[str, NDArray[Any]]
"""By level, an array "tokens channels" of the stored dtype to read into."""


class Cache:
    """A cache opened for reading. `cache[i]` is image i in the first view, `cache.image(id)` goes by image id.

    Safe to use from several threads. Raises NotACacheError and FormatVersionError when opened, NotDoneError for an
    image that is not extracted, DamagedError naming image id, view and level where bytes do not match their checksum.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._source = open_source(path)
        self._group = store.open_group(path)
        header = store.read_header(self._group)
        if header is None:
            raise unfinished_cache(path)
        check_format_version(header["format_version"], self.path)
        self.spec = CacheSpec.from_json(header["spec"])
        self.shard = int(header["shard"])
        self.stored_fingerprint = str(header["fingerprint"])
        self.images: list[ImageInfo] = store.read_image_table(self._group)
        self._arrays: dict[str, ViewFiles] = {}
        self._done: dict[str, NDArray[np.bool_]] = {}
        self._truths: dict[str | None, list[GroundTruth]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Entry:
        return self.entry(index)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views; the first is the one that `cache[i]` gives."""
        return self.spec.views

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the spec."""
        return self.spec.fingerprint

    @property
    def bytes_read(self) -> int:
        """Bytes of files read so far, about: for progress."""
        return self._source.bytes_read

    def done(self, view: str | None = None) -> NDArray[np.bool_]:
        """Which images of a view are extracted, read afresh."""
        view = self._view(view)
        files = self.files(view).done
        try:
            flags = (
                read_all(self._source, files, len(self)) if files.direct else store.read_array(self._group, files.path)
            )
        except OSError as error:
            where, hint = f"done flags of view {view} of cache {self.path}", f"featcache verify {self.path}"
            raise DamagedError(self._words(error), where, hint) from error
        self._done[view] = flags.astype(bool)
        return self._done[view]

    def index_of(self, image_id: int) -> int:
        """Index of an image id; raises CacheError."""
        try:
            return self._index_by_id[image_id]
        except KeyError as error:
            raise CacheError(f"no image {image_id} in cache {self.path}", f"featcache ls {self.path}") from error

    def image(self, image_id: int, view: str | None = None) -> Entry:
        """The entry of an image id."""
        return self.entry(self.index_of(image_id), view)

    def entry(self, index: int, view: str | None = None, levels: Sequence[str] | None = None) -> Entry:
        """Image `index` in a view (the first by default), with all levels or those named, if any."""
        return self.decode(self.read(index, self._view(view), levels))

    def window(self, index: int, level: str, y0: int, y1: int, view: str | None = None) -> Tensor:
        """Rows [y0, y1) of one level, "c h w"; reads only the bands under them (`LevelSpec.band_rows`)."""
        level_spec, view = self.spec.level(level), self._view(view)
        index = self._checked(index, view)
        rows, files = self.read_rows(index, view), self.files(view).maps[level]
        h, w = rows["level_hw"][self.spec.position(level)].tolist()
        if not 0 <= y0 < y1 <= h:
            raise CacheError(f"rows {y0}:{y1} are outside level {level} of {h} rows")
        top, step = 0 if files.delta else y0, level_spec.band_tokens  # differences begin at the first row
        bands = range(top * w // step, -(-y1 * w // step))
        begin = bands.start * step
        out = self.empty_tokens(level)[: min(bands.stop * step, level_spec.tokens) - begin]
        self._read_bands(index, view, level, bands, out, begin)
        tokens = out[top * w - begin : y1 * w - begin]
        return decode_map(tokens.reshape(y1 - top, w, -1), self.spec, files, rows)[:, y0 - top :]

    def ground_truth(self, index: int, name: str | None = None) -> GroundTruth:
        """Annotations of image `index`, in the frame of the original image.

        With a name of `spec.further_truth`, that ground truth; raises CacheError where the cache has none of that name.
        """
        if name not in self._truths:
            if name is not None and name not in self.spec.further_truth:
                known = ", ".join(self.spec.further_truth) or "none"
                raise CacheError(f"no ground truth {name!r} in cache {self.path}", f"further ground truth: {known}")
            self._truths[name] = store.read_ground_truth(self._group, name)
        return self._truths[name][index]

    def read(
        self,
        index: int,
        view: str,
        levels: Sequence[str] | None = None,
        out: Buffers | None = None,
        wanted: Wanted | None = None,
    ) -> Record:
        """Stored values of one image, checked against their checksums; maps go into `out` where given.

        levels: only these, none of them too; None for all.
        wanted: of levels in bands, read only the bands that hold these rows; `Record.read` says which those are.
        """
        index = self._checked(index, view)
        rows = self.read_rows(index, view)
        record = Record(index, view, {}, rows)
        nothing: Mapping[str, Sequence[tuple[int, int]]] = {}
        spans = wanted(self.decode(record)) if wanted is not None else nothing
        for name in self.spec.level_names if levels is None else levels:
            level, (h, w) = self.spec.level(name), rows["level_hw"][self.spec.position(name)].tolist()
            tokens = self.empty_tokens(name) if out is None else out[name]
            bands: Sequence[int] = range(level.bands)
            if name in spans and level.bands > 1:
                bands = bands_under(spans[name], h, w, level.band_tokens)
                record.read[name] = token_runs(bands, level.band_tokens, h * w)
            self._read_bands(index, view, name, bands, tokens)
            record.tokens[name] = tokens[: h * w]
        return record

    def decode(self, record: Record, device: torch.device | str = "cpu") -> Entry:
        """The entry of stored values, decoded on a device; may overwrite the record's maps."""
        info, truth = self.images[record.index], self.ground_truth(record.index)
        return decode_record(record, self.spec, self.files(record.view), info, truth, device)

    def read_rows(self, index: int, view: str) -> dict[str, NDArray[Any]]:
        """The small arrays of one image by name, checked; raises DamagedError."""
        files = self.files(view)
        try:
            *rows, checksum = self._row_bytes([*files.rows.values(), files.checksum], index)
        except (ValueError, OSError) as error:
            raise self._damaged(index, view, "rows", self._words(error)) from error
        stored = dict(zip(files.rows, rows, strict=True))
        if rows_checksum(stored) != int.from_bytes(checksum, "little"):
            raise self._damaged(index, view, "rows", "checksum does not match")
        return {
            name: np.frombuffer(bytearray(data), files.rows[name].array.dtype).reshape(files.rows[name].array.shape)
            for name, data in stored.items()
        }

    def read_tokens(self, index: int, view: str, level: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Stored tokens "tokens channels" of one level, zeros after the image's own, checked; raises DamagedError."""
        out = self.empty_tokens(level) if out is None else out
        self._read_bands(index, view, level, range(self.spec.level(level).bands), out)
        return out

    def _read_bands(
        self, index: int, view: str, level: str, bands: Sequence[int], out: NDArray[Any], begin: int = 0
    ) -> None:
        files = self.files(view).maps[level]
        step = files.level.band_tokens
        parts = [out[band * step - begin : (band + 1) * step - begin] for band in bands]
        try:
            if files.direct:
                read_bands(self._source, files, index, bands, parts)
            else:
                for band, part in zip(bands, parts, strict=True):
                    where = slice(band * step, band * step + len(part))
                    part[...] = store.read_row(self._group, files.path, index, where)
        except (DamagedError, ValueError, OSError) as error:
            what = error.what if isinstance(error, DamagedError) else self._words(error)
            raise self._damaged(index, view, f"level {level}", what) from error

    def files(self, view: str) -> ViewFiles:
        """Where the arrays of a view lie."""
        if view not in self._arrays:
            if view not in self.views:
                raise CacheError(f"no view {view!r} in cache {self.path}", f"views: {', '.join(self.views)}")
            self._arrays[view] = store.open_view(self._group, self.spec, view)
        return self._arrays[view]

    def has_file(self, key: str) -> bool:
        """Whether a file of the cache exists."""
        return self._source.exists(key)

    def empty_tokens(self, level: str) -> NDArray[Any]:
        """A buffer "tokens channels" for the stored tokens of one image."""
        spec = self.spec.level(level)
        return np.empty((spec.tokens, spec.channels), codecs.numpy_dtype(self.spec.codec))

    def _row_bytes(self, arrays: Sequence[RowFiles], index: int) -> list[bytes]:
        if all(files.direct for files in arrays):
            return read_row_of_each(self._source, arrays, index)
        rows = [store.read_row(self._group, files.path, index) for files in arrays]
        return [row.astype(files.array.dtype).tobytes() for row, files in zip(rows, arrays, strict=True)]

    def _damaged(self, index: int, view: str, part: str, what: str) -> DamagedError:
        where = f"image {self.images[index].id}, view {view}, {part} of cache {self.path}"
        return DamagedError(what, where, f"featcache verify {self.path} --deep")

    def _words(self, error: Exception) -> str:
        """What kept bytes from being read. Raises the error again where that is this process and not the bytes."""
        if not isinstance(error, OSError):
            return str(error)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR):
            raise error
        return f"{str(error.filename).removeprefix(f'{self._source.name}/')}: {error.strerror}"

    def _checked(self, index: int, view: str) -> int:
        """The index counted from the start; raises IndexError, and NotDoneError where there is nothing to read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} outside cache of {len(self)} images")
        index %= len(self)
        if not self._is_done(index, view):
            raise NotDoneError(
                f"image {self.images[index].id}, view {view} of cache {self.path} is not extracted yet",
                "run the extraction again, it continues",
            )
        return index

    def _is_done(self, index: int, view: str) -> bool:
        if view not in self._done or not self._done[view][index]:
            self.done(view)
        return bool(self._done[view][index])

    def _view(self, view: str | None) -> str:
        return self.views[0] if view is None else view

    @cached_property
    def _index_by_id(self) -> dict[int, int]:
        return {image.id: index for index, image in enumerate(self.images)}
