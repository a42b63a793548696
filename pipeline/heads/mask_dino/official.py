"""Names of the official predictor's weights, where one tensor has several, and ours."""

from .head import MaskDino


def official_keys(head: MaskDino) -> dict[str, str]:
    """Official name below `sem_seg_head.predictor.` -> the name of the same tensor in `head.state_dict()`.

    As in MaskDINO (without interaction and guidance) and DI-MaskDINO (with both). The official code knows neither
    `projections` nor `residual`, and has what `pixels` holds in another part; they are left out.
    """
    stems = _stems(head)
    keys: dict[str, str] = {}
    for name in head.state_dict():
        ours = max((stem for stem in stems if name.startswith(f"{stem}.")), key=len, default=None)
        if ours is not None:
            keys |= {theirs + name.removeprefix(ours): name for theirs in stems[ours]}
    return keys


def _stems(head: MaskDino) -> dict[str, list[str]]:
    """Our module -> all names of the official one."""
    config = head.config
    stems = {
        "selection.project": ["enc_output"],
        "selection.norm": ["enc_output_norm"],
        "label_embed": ["label_enc"],
        "decoder.layers": ["decoder.layers"],
        "decoder.place": ["decoder.ref_point_head"],
        "readout.norm": ["decoder_norm", "decoder.norm"],
        "readout.class_embed": ["class_embed"],
        "readout.mask_embed": ["mask_embed"],
        "readout.box_embed": ["_bbox_embed", *_numbered(("bbox_embed", "decoder.bbox_embed"), config.layers)],
    }
    if config.interaction_layers:
        boxes = _numbered(("oldm_bbox_embed", "oldm.bbox_embed"), config.interaction_layers)
        stems |= {
            "interaction.layers": ["oldm.layers"],
            "interaction.place": ["oldm.ref_point_head"],
            "interaction.norm": ["oldm_norm", "oldm.norm"],
            "interaction.box_embed": ["_oldm_bbox_embed", *boxes],
        }
        stems["readout.class_embed"].append("oldm.class_embed")
    if config.guiding_tokens:
        update = ("query_guide_feature_update", "decoder.query_guide_feature_update")
        for part in ("norm1", "linear1", "linear2", "norm2"):
            stems[f"decoder.guidance.{part}"] = [f"{name}.{part}" for name in update]
        stems["decoder.guidance.attention"] = [f"{name}.multihead_attn" for name in update]
        stems["decoder.guidance.smooth.0"] = ["decoder.mask_output_conv"]
        stems["decoder.guidance.smooth.1"] = ["decoder.mask_output_conv.norm"]
        stems["readout.class_embed"].append("decoder.class_embed")
        stems["readout.mask_embed"].append("decoder.mask_embed")
    return stems


def _numbered(names: tuple[str, ...], layers: int) -> list[str]:
    return [f"{name}.{number}" for name in names for number in range(layers)]
