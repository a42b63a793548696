"""Which bands of a map hold some of its rows. Bands count cells, so that one may end within a row."""

from __future__ import annotations

from collections.abc import Sequence


def bands_under(spans: Sequence[tuple[int, int]], h: int, w: int, band_tokens: int) -> list[int]:
    """The bands, of so many cells each, that hold cells of the rows [y0, y1) of an h x w map; in order, each once."""
    found: set[int] = set()
    for y0, y1 in spans:
        top, bottom = max(0, y0), min(h, y1)
        if top < bottom:
            found.update(range(top * w // band_tokens, -(-bottom * w // band_tokens)))
    return sorted(found)


def token_runs(bands: Sequence[int], band_tokens: int, tokens: int) -> list[range]:
    """The cells in those bands, of the first `tokens` of a map, neighbouring bands as one."""
    runs: list[range] = []
    for band in bands:
        start, stop = band * band_tokens, min((band + 1) * band_tokens, tokens)
        if runs and runs[-1].stop == start:
            runs[-1] = range(runs[-1].start, stop)
        else:
            runs.append(range(start, stop))
    return runs
