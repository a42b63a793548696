"""Every choice of the Mask Frozen-DETR head, with its default; the defaults are row 4 of the paper's Table 12."""

from dataclasses import dataclass
from typing import Literal

QUERY_LAYERS = ("o2o", "b2o", "ffn")


@dataclass(frozen=True)
class HeadConfig:
    """One head. `configs/heads/*.toml` hold the named ones."""

    image_encoder: Literal["deformable", "none"] = "deformable"
    """What refines the encoder maps for all boxes at once (section 3.2)."""
    image_layers: int = 2
    neck: bool = True
    """Add C1 through a 1x1 convolution and GroupNorm; without it F is the finest encoder map alone."""
    hidden: int = 128
    """Width of everything on the RoI grid. Equal to the encoder's width there is no channel mapper (Table 4)."""
    roi: int = 32
    """Cells along each side of the RoI grid (Table 10)."""
    sampling_ratio: int = 2
    """RoIAlign's samples per cell and axis."""
    box_encoder: Literal["deformable", "unet", "none"] = "deformable"
    """What refines the features inside each box (section 3.3). `unet` is ours, for small data."""
    box_layers: int = 2
    """Layers of the deformable encoder; resolutions of the U-shaped one."""
    box_norm_first: bool = False
    """Normalise before each part of the deformable layers instead of after it."""
    query_encoder: tuple[Literal["o2o", "b2o", "ffn"], ...] = ("b2o", "ffn")
    """What refines the queries beside each box layer, in this order (Table 5)."""
    query_modulation: bool = False
    """Let the query scale and shift the channels of the U-shaped encoder's blocks. Ours, not the paper's."""
    mask_scoring: bool = True
    """Predict the mask's IoU per class; without it the score follows eq. (2)."""
    mask_bias: bool = False
    """Add a bias predicted from the query to its mask logits. Ours, not the paper's."""
    heads: int = 8
    """Attention heads of every attention."""
    points: int = 4
    """Sampling points per head and level of the deformable attention."""
    dropout: float = 0.0
    """Whole channels of the pooled features dropped in training."""

    def __post_init__(self) -> None:
        if self.roi < 2 or self.roi % 2:
            raise ValueError(f"roi is {self.roi}, expected an even number of cells")
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.mask_scoring and self.roi % 8:
            raise ValueError(f"mask_scoring halves the grid three times: roi {self.roi} is not a multiple of 8")
        if self.box_encoder == "unet" and self.roi % 2 ** (self.box_layers - 1):
            raise ValueError(
                f"a U of {self.box_layers} resolutions needs roi {self.roi} to halve {self.box_layers - 1} times"
            )
        if self.query_modulation and self.box_encoder != "unet":
            raise ValueError("query_modulation goes with box_encoder = 'unet'")
        if self.query_encoder and self.box_encoder == "none":
            raise ValueError("query_encoder layers stand beside box layers: choose a box_encoder or query_encoder = []")
