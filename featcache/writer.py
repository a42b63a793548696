"""`CacheWriter`: features in, a cache on disk out. Done means on disk; whatever is not done is extracted again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featcache import codecs, store
from featcache.commit import Committer
from featcache.delta import MEASURED_IMAGES, delta_is_smaller, row_differences
from featcache.errors import BadValueError, CacheError
from featcache.files import full_disk_is_clear
from featcache.groups import Group, Groups
from featcache.layout import ViewFiles, row_arrays
from featcache.lock import WriterLock
from featcache.pack import detection_rows, encode_maps, on_host, one_thread_if_small
from featcache.record import Record
from featcache.resume import check_tables, create_or_resume, refuse_foreign
from featcache.source import local_directory
from featcache.spec import CacheSpec, GroundTruth, ImageInfo


class CacheWriter:
    """Creates a cache, or continues one of the same identity (but for what is newer than it: `resume.py`).

    A context manager.

    `put` quantises on the device that made the features and hands the bytes to `threads` writer threads through a queue
    of at most `queue` images, so memory stays bounded however slow the disk is. Files that are complete are flushed,
    and their images marked done, as soon as they are `flush_bytes` or one has waited for two seconds. `shard` images
    share a file, by default 8 small ones, and more where it takes more to keep the cache below 100,000 files.
    `ground_truth` has the annotations of each image, None where there are none. `further_truth` gives each of the
    spec's by name, one for each image; it is asked only where the cache is new.
    Raises MismatchError for a cache of another fingerprint and LockedError while another writer lives.
    """

    def __init__(
        self,
        path: str | Path,
        spec: CacheSpec,
        images: Sequence[ImageInfo],
        ground_truth: Sequence[GroundTruth] | None = None,
        *,
        further_truth: Mapping[str, Callable[[], Sequence[GroundTruth]]] | None = None,
        shard: int | None = None,
        threads: int = 2,
        queue: int = 8,
        flush_bytes: int = 16 << 20,
    ) -> None:
        self.path = local_directory(path)
        self.images = list(images)
        ground_truth = [GroundTruth.none()] * len(self.images) if ground_truth is None else ground_truth
        check_tables(self.images, ground_truth, shard)
        with full_disk_is_clear(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_foreign(self.path)
            self._lock = WriterLock(self.path)
            try:
                self.spec, self._shard = create_or_resume(
                    self.path, spec, self.images, ground_truth, further_truth or {}, shard
                )
                group = store.open_group(self.path)
                self._views: dict[str, ViewFiles] = {
                    view: store.open_view(group, self.spec, view) for view in self.spec.views
                }
                self._delta: dict[tuple[str, str], bool | None] = {
                    (view, name): files.delta
                    for view, arrays in self._views.items()
                    for name, files in arrays.maps.items()
                }
            except BaseException:
                self._lock.release()
                raise
        self._row_arrays = row_arrays(self.spec)
        self._undecided: dict[str, list[Record]] = {}  # by view, until it is known whether delta is smaller
        self._committer = Committer(self.path, self._views, len(self.images), self._shard)
        self._groups = Groups(shard=self._shard, images=len(self.images), flush_bytes=flush_bytes)
        self._error: BaseException | None = None
        self._batch = max(1, queue // threads)
        self._queue: Queue[Record | None] = Queue(maxsize=queue)
        self._threads = [
            threading.Thread(target=self._work, name="featcache-writer", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CacheError:
            if error is None:  # do not hide what went wrong first
                raise

    @property
    def bytes_written(self) -> int:
        """Bytes of maps this writer has put on disk."""
        return self._committer.bytes_written

    def done(self, view: str) -> NDArray[np.bool_]:
        """Which images of a view are on disk."""
        return self._committer.done(view)

    def pending(self, view: str) -> list[int]:
        """Indices of a view that are not done yet."""
        return np.flatnonzero(~self.done(view)).tolist()

    def put(
        self,
        index: int,
        view: str,
        *,
        maps: Mapping[str, Tensor],  # "c h w" each
        input_hw: tuple[int, int],
        queries: Tensor | None = None,  # "n d"
        boxes: Tensor | None = None,  # "n 4"
        scores: Tensor | None = None,  # "n"
        labels: Tensor | None = None,  # "n"
    ) -> None:
        """Store one image in one view; returns when it is queued, done when it is on disk. The first few of a view wait
        until they tell whether `delta` makes their maps smaller, at the latest until `flush`. An image without
        detections may leave all four of their tensors out.

        Boxes are cxcywh in 0-1 of the view; `input_hw` is the network's input without padding, in pixels. Raises
        BadValueError naming image id, level and position for a shape or value that cannot be stored.
        """
        if view not in self._views or not 0 <= index < len(self.images):
            raise BadValueError(f"no view {view!r} with index {index} in this cache of {len(self.images)} images")
        with one_thread_if_small(maps.values()):
            detections = {"boxes": boxes, "scores": scores, "labels": labels, "queries": queries}
            record = self._record(index, view, maps, detections, input_hw)
        if self._is_decided(view):
            self.put_record(record)
            return
        self._undecided.setdefault(view, []).append(record)
        if len(self._undecided[view]) == MEASURED_IMAGES:
            self._decide(view)

    def _is_decided(self, view: str) -> bool:
        """Whether it is known which levels of a view are stored as row differences."""
        return self.spec.codec != "uint8" or None not in (self._delta[view, level.name] for level in self.spec.levels)

    def _record(
        self,
        index: int,
        view: str,
        maps: Mapping[str, Tensor],
        detections: Mapping[str, Tensor | None],
        input_hw: tuple[int, int],
    ) -> Record:
        """What `put` was given in stored values."""
        name = f"image {self.images[index].id}, view {view}"
        rows = detection_rows(self._row_arrays, detections, name=name)
        rows["input_hw"] = np.array([int(side) for side in input_hw])
        encoded, decided = encode_maps(self.spec, maps, name=name), self._is_decided(view)
        found: dict[str, Tensor] = {}
        level_hw: list[tuple[int, int]] = []
        for level in self.spec.levels:
            stored = encoded[level.name]
            h, w, c = stored.tokens.shape
            level_hw.append((h, w))
            values = stored.tokens
            if level.moments:
                moments = stored.moments()
                found |= {f"mean/{level.name}": moments.mean, f"covariance/{level.name}": moments.packed()}
            if stored.scale is not None and stored.offset is not None:
                found |= {f"scale/{level.name}": stored.scale, f"offset/{level.name}": stored.offset}
                if decided and self._delta[view, level.name]:
                    values = codecs.add_delta(values)
            found[level.name] = values.reshape(h * w, c)
        arrays = on_host(found)
        tokens = {level.name: arrays.pop(level.name) for level in self.spec.levels}
        rows |= {**arrays, "level_hw": np.array(level_hw)}
        return Record(index, view, tokens, rows)

    def put_record(self, record: Record) -> None:
        """Store one image that is already in stored values, such as one copied from another cache."""
        self._raise_error()
        self._queue.put(record)

    def delta(self, view: str, level: str) -> bool | None:
        """Whether a level of a view is stored as row differences; None before its first images."""
        return self._delta[view, level]

    def set_delta(self, view: str, level: str, delta: bool) -> None:
        """Choose row differences or not, durably, before an image of that level is on disk."""
        store.set_attribute(
            self.path / self._views[view].maps[level].path, store.map_attribute(self.spec, view, level, delta=delta)
        )
        self._delta[view, level] = delta

    def flush(self) -> None:
        """Return when everything put is on disk and marked done."""
        for view in list(self._undecided):
            self._decide(view)
        self._queue.join()
        self._raise_error()
        with full_disk_is_clear(self.path):
            self._committer.commit(self._groups.take())

    def close(self) -> None:
        """Flush, stop the threads, let the next writer in."""
        if not self._threads:
            return
        try:
            self.flush()
        finally:
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()
            self._threads = []
            self._lock.release()

    def _decide(self, view: str) -> None:
        """Choose what the images of a view that wait tell to be smaller, and queue them."""
        records = self._undecided.pop(view)
        for level in self.spec.levels:
            if self._delta[view, level.name] is None:
                whole = level.bands == 1  # a band is read without those above
                self.set_delta(view, level.name, whole and delta_is_smaller(self.spec, level.name, records))
            if self._delta[view, level.name]:
                for record in records:
                    record.tokens[level.name] = row_differences(self.spec, level.name, record)
        for record in records:
            self.put_record(record)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Body of a writer thread. Images that wait are committed together, so a slow disk is flushed less often."""
        stopping = False
        while not stopping:
            records, stopping = self._take()
            try:
                if self._error is None:
                    self._write(records)
            except BaseException as error:  # raised to the caller by the next put, flush or close
                self._error = error
            written = len(records)
            records.clear()  # they would stay in memory while this thread waits for the next
            for _ in range(written):
                self._queue.task_done()

    def _write(self, records: Sequence[Record]) -> None:
        with full_disk_is_clear(self.path):
            self._committer.commit([group for record in records for group in self._collect(record)])

    def _take(self) -> tuple[list[Record], bool]:
        """The next record and those that already wait behind it, and whether this thread is asked to stop."""
        records: list[Record] = []
        with contextlib.suppress(Empty):
            item = self._queue.get()
            while item is not None:
                records.append(item)
                if len(records) == self._batch:
                    return records, False
                item = self._queue.get_nowait()
            return records, True
        return records, False

    def _collect(self, record: Record) -> list[Group]:
        """Encode a record; the groups that are now to be written."""
        chunks, rows = self._committer.encode(record)
        return self._groups.add(record.view, record.index, chunks, rows)
