"""What can be known to fail before anything is trained or written: asked before a run directory is begun."""

import sys

import torch

from featcache import CacheSpec

from ..data.sources import FeatureSource
from ..data.views import check_view
from ..errors import PipelineError
from ..heads.base import Widths
from ..heads.registry import build_head
from .order import Order
from .recipe import Recipe


def check_training(recipe: Recipe, source: FeatureSource) -> None:
    """Raise PipelineError where these features cannot train this head: its widths, views, or images to learn from."""
    parameters = count_parameters(recipe, Widths.of_cache(source.spec))
    check_views(recipe, source.spec)
    if parameters:
        check_order(Order.of(recipe.train, source), source)


def count_parameters(recipe: Recipe, widths: Widths) -> int:
    """Parameters of a head, without the memory for them; raises PipelineError where it does not fit the widths."""
    try:
        with torch.device("meta"):
            head = build_head(recipe.family, recipe.head, widths)
    except ValueError as error:
        raise PipelineError(f"'{recipe.name}' does not fit the features: {error}") from None
    return sum(parameter.numel() for parameter in head.parameters())


def check_views(recipe: Recipe, spec: CacheSpec) -> None:
    """Raise PipelineError where the cache has not all the views that the training asks for."""
    missing = [check_view(view) for view in recipe.train.views if view not in spec.views]
    if missing:
        raise PipelineError(
            f"the cache holds no view {', '.join(missing)}, only {', '.join(spec.views)}",
            f"extract one with --views {','.join(recipe.train.views)}",
        )


def check_order(order: Order, source: FeatureSource) -> None:
    """Raise PipelineError where there is no image to learn from; say so where there are too few for one batch."""
    pairs = len(order.indices(source)) * len(order.views)
    if pairs < order.batch_size:
        print(
            f"warning: batch_size={order.batch_size}, but {source} has only {pairs} pairs of image and view to learn "
            f"from: every step takes these {pairs}",
            file=sys.stderr,
            flush=True,
        )
