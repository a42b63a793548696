"""What the queries of Mask DINO say, layer by layer. b images, q queries."""

from dataclasses import dataclass

from torch import Tensor

EPS = 1e-5
"""Of `inverse_sigmoid`, here and of the denoising queries; the detector DINO has 1e-3."""


@dataclass(frozen=True)
class LayerPrediction:
    """Of every query: its class, its box, its mask."""

    class_logits: Tensor
    """Before sigmoid, each class for itself. "b q classes" """
    boxes: Tensor
    """cxcywh in 0-1 of the view. "b q 4" """
    mask_logits: Tensor | None
    """On the grid of the mask features, before sigmoid; None where no mask is told. "b q h w" """


@dataclass(frozen=True)
class Predictions:
    """All that the loss looks at."""

    layers: tuple[LayerPrediction, ...]
    """Before the first decoder layer and after each; the last is the result."""
    selected: LayerPrediction
    """Of the tokens of the first selection."""
    interaction: tuple[LayerPrediction, ...] = ()
    """DI-MaskDINO: of those tokens after each layer of their interaction, without masks."""
    denoised: tuple[LayerPrediction, ...] = ()
    """Of the denoising queries, layer by layer as in `layers`, the one before the first too; none in inference."""
