"""Every choice of the Mask Frozen-DETR head, with its default; the defaults are row 4 of the paper's Table 12."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ...bounds import Bounds, Count, CountOrZero, check_bounds


@dataclass(frozen=True)
class HeadConfig:
    """One head. `configs/heads/*.toml` hold the named ones."""

    encoder_layer: CountOrZero = 0
    """Which encoder layer's maps it reads, from 1 (Table 15); 0: those that the detector's TOML chose. Others must be
    in the cache: `extra_encoder_layers` of the detector."""
    image_encoder: Literal["deformable", "swin", "convnext", "none"] = "deformable"
    """What refines the encoder maps for all boxes at once (section 3.2, Table 2). `deformable` mixes all levels, `swin`
    and `convnext` refine the finest."""
    image_layers: CountOrZero = 2
    """Layers of the image encoder."""
    image_window: Annotated[int, Bounds(2)] = 16
    """Side of the attention windows of a `swin` image encoder, in cells."""
    c1: bool = True
    """Add C1 to the finest encoder map, F = C1 + interpolate(E). Not done, whatever stands here, where that map has
    C1's stride already, as with a 5-scale detector."""
    neck: bool = True
    """Refine C1 by a 1x1 convolution and GroupNorm (eq. 14), which also brings it to the width of the encoder maps.
    Without it C1 is added as it is; where it is not of that width, only the channels that both have count."""
    neck_path: Literal["auto", "full", "local"] = "auto"
    """Where the neck and the channel mapper work: `full` on whole maps before RoIAlign, `local` after it, on the cells
    of the boxes' grids. The same result but for rounding; `auto` takes, map by map and batch by batch, what needs fewer
    multiply-adds. The image encoder stands before RoIAlign in any case: it mixes cells of the whole image."""
    upsample: Literal["exact", "direct"] = "exact"
    """How boxes see the encoder map: `exact`, upsampled to C1's grid as the paper does; `direct`, sampled on its own
    grid, another function and cheaper. Ours, not the paper's."""
    hidden: Count = 128
    """Width of everything on the RoI grid. Equal to the encoder's width there is no channel mapper (Table 4)."""
    roi: Annotated[int, Bounds(2)] = 32
    """Cells along each side of the RoI grid (Table 10)."""
    sampling_ratio: CountOrZero = 2
    """RoIAlign's samples per cell and axis; 0: as many as there are cells of the map below, box by box."""
    aligned: bool = True
    """Where RoIAlign takes the centre of a cell of the map to be: in its middle; else, as in its first version, half a
    cell off."""
    box_encoder: Literal["deformable", "swin", "convnext", "unet", "none"] = "deformable"
    """What refines the features inside each box (section 3.3, Table 3). `unet` is ours, for small data."""
    box_layers: CountOrZero = 2
    """Layers of the box encoder; resolutions of the U-shaped one."""
    box_window: Annotated[int, Bounds(2)] = 8
    """Side of the attention windows of a `swin` box encoder, in cells."""
    box_position: Literal["learned", "none"] = "learned"
    """Position embedding of the `deformable` box encoder; the others need none."""
    box_position_on: Literal["query", "input"] = "query"
    """What the embedding is added to: `query`, what asks in each layer's attention; `input`, the grid itself, once
    before the first layer, so that what is read holds it too."""
    box_norm_first: bool = False
    """Normalise before each part of the `deformable` box layers instead of after it."""
    query_encoder: tuple[Literal["o2o", "b2o", "ffn"], ...] = ("b2o", "ffn")
    """What refines the queries beside each box layer, in this order (section 3.4, Table 5)."""
    query_modulation: bool = False
    """Let the query scale and shift the channels of the U-shaped encoder's blocks. Ours, not the paper's."""
    mask_head: Literal["dot", "segmenter"] = "dot"
    """Mask logits from queries and features: their product, or that of their normalised projections (Table 14)."""
    mask_scale: Literal["attention", "none"] = "attention"
    """Of the logits of the `dot` product: over the square root of `hidden`, as in attention, or as they are (eq. 4),
    which begins with logits in the tens."""
    mask_scoring: bool = True
    """Predict the mask's IoU per class (Table 12); without it the score follows eq. (2)."""
    mask_scoring_input: Literal["probs", "logits"] = "probs"
    """What mask scoring is given of the mask (eq. 12)."""
    mask_scoring_gradient: bool = False
    """Let mask scoring's loss teach the mask and the box features too, not mask scoring alone."""
    mask_bias: bool = False
    """Add a bias predicted from the query to its mask logits. Ours, not the paper's."""
    heads: Count = 8
    """Attention heads of every attention."""
    sampling_points: Count = 4
    """Sampling points per head and level of the deformable attention."""
    layer_scale: Annotated[float, Bounds(0)] = 1e-6
    """Where the factor of each channel in a `convnext` layer starts."""
    dropout: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Whole channels of the pooled features dropped in training."""

    def __post_init__(self) -> None:
        check_bounds(self)
        self._check_sizes()
        self._check_choices()

    def _check_sizes(self) -> None:
        if self.roi % 2:
            raise ValueError(f"roi is {self.roi}, expected an even number of cells")
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.mask_scoring and self.roi % 8:
            raise ValueError(f"mask_scoring halves the grid three times: roi {self.roi} is not a multiple of 8")
        for name in ("image", "box"):
            layers, encoder = getattr(self, f"{name}_layers"), getattr(self, f"{name}_encoder")
            if encoder != "none" and layers < 1:
                raise ValueError(f"{name}_layers is {layers}: for none of them choose {name}_encoder = 'none'")
        if self.box_encoder == "unet" and self.roi % 2 ** (self.box_layers - 1):
            raise ValueError(
                f"a U of {self.box_layers} resolutions needs roi {self.roi} to halve {self.box_layers - 1} times"
            )

    def _check_choices(self) -> None:
        if self.neck and not self.c1:
            raise ValueError("neck refines C1, which c1 = false leaves out: set neck = false too")
        if self.query_modulation and self.box_encoder != "unet":
            raise ValueError("query_modulation goes with box_encoder = 'unet'")
        if self.query_encoder and self.box_encoder == "none":
            raise ValueError("query_encoder layers stand beside box layers: choose a box_encoder or query_encoder = []")
        if len(set(self.query_encoder)) < len(self.query_encoder):
            raise ValueError(f"query_encoder names a layer twice: {', '.join(self.query_encoder)}")
        if self.box_position == "none" and self.box_encoder != "deformable":
            raise ValueError("box_position is a choice of box_encoder = 'deformable'; the others have no embedding")
        if self.box_position_on != "query" and (self.box_encoder != "deformable" or self.box_position == "none"):
            raise ValueError("box_position_on goes with box_encoder = 'deformable' and box_position = 'learned'")
        if self.box_norm_first and self.box_encoder != "deformable":
            raise ValueError("box_norm_first is a choice of box_encoder = 'deformable'")
        if self.mask_scale != "attention" and self.mask_head != "dot":
            raise ValueError("mask_scale goes with mask_head = 'dot': the other's logits are normalised")
        if not self.mask_scoring and (self.mask_scoring_input != "probs" or self.mask_scoring_gradient):
            raise ValueError("mask_scoring_input and mask_scoring_gradient go with mask_scoring = true")
