"""A cache of format version 1 opens and gives its values for ever; `docs/format.md` says how without our code."""

import re
import sys
from pathlib import Path

import numpy as np
import torch

from featcache import Cache
from featcache.checks import verify

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/fixtures/cache_v1"
sys.path.append(str(FIXTURE.parent))

from make_cache_v1 import maps  # noqa: E402


def test_version_1_opens_for_ever() -> None:
    cache = Cache(FIXTURE)
    assert (len(cache), cache.views, cache.shard, cache.fingerprint) == (2, ("orig",), 2, "600e8ba7e3d4")
    assert [image.id for image in cache.images] == [7, 9]
    assert cache.images[1].file_name == "neun-ü.jpg"
    for index in (0, 1):
        entry = cache[index]
        for name, values in maps(index).items():
            step = (values.amax((1, 2)) - values.amin((1, 2))) / 255
            assert ((entry.maps[name] - values).abs() <= 0.501 * step[:, None, None]).all()
        assert entry.boxes.tolist() == [[0.25 * (index + 1)] * 4] * (3 - index)
        assert entry.queries.tolist() == torch.arange(2.0 * (3 - index)).view(-1, 2).tolist()
        torch.testing.assert_close(entry.scores, torch.linspace(0.9, 0.5, 3 - index))
        assert entry.labels.tolist() == [0] * (3 - index)
    assert cache[0].input_hw == (24, 32)
    assert cache.ground_truth(0).rles == [b"PPYo0"]
    np.testing.assert_array_equal(cache.ground_truth(0).boxes_xywh, [[1.5, 2.0, 10.0, 12.0]])
    assert len(cache.ground_truth(1)) == 0
    assert verify(FIXTURE, deep=True).good


def test_the_documented_reading_gives_the_map() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(blocks[0].replace('"CACHE"', repr(str(FIXTURE))), names)
    np.testing.assert_allclose(names["map_chw"], Cache(FIXTURE)[0].maps["c1"], rtol=1e-6, atol=1e-6)
