"""The rows of `ls`, which come from whole columns, are those that reading image by image gives."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from featcache import Cache
from featcache.errors import DamagedError
from featcache.listing import image_rows

Maker = Callable[..., Path]


def one_by_one(path: Path, min_score: float) -> list[dict[str, Any]]:
    """Through `Cache`, an image at a time."""
    cache = Cache(path)
    names = {one["id"]: one["name"] for one in cache.spec.recipe.get("categories", [])}
    flags = {view: cache.done(view) for view in cache.views}
    rows: list[dict[str, Any]] = []
    for index, info in enumerate(cache.images):
        truth, there = cache.ground_truth(index), flags[cache.views[0]][index]
        scores = cache[index].scores.tolist() if there else []
        rows.append(
            {
                "index": index,
                "image_id": info.id,
                "height": info.height,
                "width": info.width,
                "annotations": len(truth),
                "boxes": sum(score >= min_score for score in scores) if there else None,
                "score": round(max(scores, default=0.0), 3) if there else None,
                **{f"done_{view}": bool(of_view[index]) for view, of_view in flags.items()},
                "categories": sorted({names.get(one, str(one)) for one in truth.category_ids.tolist()}),
                "file_name": info.file_name,
            }
        )
    return rows


@pytest.mark.parametrize("order", [[0, 2, 3, 6], [], list(range(7))])
def test_rows_are_those_of_reading_image_by_image(make_cache: Maker, order: list[int]) -> None:
    path = make_cache(7, order=order)
    for least in (0.0, 0.4):
        expected = one_by_one(path, least)
        assert image_rows(path, min_score=least) == expected
        assert image_rows(path, min_score=least, limit=3) == expected[:3]
        absent = [row for row in expected if not row["done_orig"]]
        assert image_rows(path, min_score=least, missing=True) == absent
        assert image_rows(path, min_score=least, missing=True, limit=1) == absent[:1]
    assert [type(value) for value in image_rows(path)[0].values()] == [
        type(v) for v in one_by_one(path, 0.4)[0].values()
    ]


def test_a_cache_that_another_program_wrote_again_gives_the_same_rows(make_cache: Maker) -> None:
    """Arrays in other chunks and codecs, which only zarr reads."""
    path = make_cache(5, order=[0, 3])
    expected = image_rows(path)
    group: Any = zarr.open_group(str(path), mode="r+")
    for name in ("images/id", "ground_truth/category_id", "views/orig/scores", "views/orig/done"):
        values = np.asarray(group[name][...])
        group.create_array(name, data=values, chunks=(2, *values.shape[1:]), overwrite=True)
    assert image_rows(path) == expected


def test_a_damaged_table_is_named(make_cache: Maker) -> None:
    path = make_cache(3)
    file = path / "images/height/c.0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=rf"table images/height of cache {path}: checksum does not match"):
        image_rows(path)


def test_ls_does_not_import_torch_or_zarr(make_cache: Maker) -> None:
    words = ["featcache", "ls", str(make_cache(2)), "--filter", "boxes>=0", "--json"]
    program = (
        f"import sys; sys.argv = {words!r}\n"
        "from featcache.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'zarr'} & set(sys.modules), 'imported'"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert len(json.loads(told.stdout)) == 2
