"""Random models of `transformers`, a few KB each, saved as users have them: config, image processor, safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    DFineConfig,
    HGNetV2Config,
    PreTrainedConfig,
    ResNetConfig,
    RTDetrConfig,
    RTDetrResNetConfig,
    RTDetrV2Config,
    SwinConfig,
)

SHORTEST = {"do_resize": True, "size": {"shortest_edge": 64, "longest_edge": 96}}
SQUARE = {"do_resize": True, "do_normalize": False, "size": {"height": 64, "width": 64}}

CHANNELS = [8, 12, 16, 24]
"""Of the backbones' stages, strides 4 to 32."""
SIZES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 12,
    "use_pretrained_backbone": False,
}  # fmt: skip
HYBRID_SIZES: dict[str, Any] = {
    **SIZES, "d_model": 16, "encoder_layers": 1, "encoder_hidden_dim": 16, "encoder_in_channels": CHANNELS[1:],
    "decoder_in_channels": [16] * 3, "num_denoising": 0,
}  # fmt: skip


def resnet(stages: tuple[str, ...]) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=CHANNELS, depths=[1] * 4, layer_type="basic", out_features=list(stages)
    )


def presnet() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=CHANNELS, depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def hgnet() -> HGNetV2Config:
    return HGNetV2Config(
        embedding_size=8, hidden_sizes=CHANNELS, depths=[1] * 4, stem_channels=[3, 8, 8],
        stage_in_channels=[8, *CHANNELS[:3]], stage_mid_channels=[8] * 4, stage_out_channels=CHANNELS,
        stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def config_of(family: str) -> PreTrainedConfig:
    """A few thousand parameters; the `-two-stage` one has refinement, and a backbone of timm."""
    ours: dict[str, Any] = {"use_timm_backbone": False, "backbone": None}  # releases before 5.3 want to be told
    deformable = {**SIZES, "encoder_n_points": 2, "decoder_n_points": 2}
    if family == "deformable_detr":
        return DeformableDetrConfig(backbone_config=resnet(("stage2", "stage3", "stage4")), **deformable, **ours)
    if family == "deformable_detr-two-stage":
        return DeformableDetrConfig(
            backbone="test_resnet", two_stage=True, two_stage_num_proposals=12, with_box_refine=True, **deformable
        )
    if family == "rt_detr":
        return RTDetrConfig(backbone_config=presnet(), **HYBRID_SIZES)
    if family == "rt_detr_v2":
        return RTDetrV2Config(backbone_config=presnet(), **HYBRID_SIZES)
    if family == "d_fine":
        return DFineConfig(backbone_config=hgnet(), depth_mult=0.34, lqe_hidden_dim=8, **HYBRID_SIZES)
    if family == "detr":
        return DetrConfig(backbone_config=resnet(("stage4",)), **SIZES, **ours)
    if family == "detr-swin":
        return DetrConfig(backbone_config=SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4), **SIZES, **ours)
    assert family == "conditional_detr"
    return ConditionalDetrConfig(backbone_config=resnet(("stage4",)), **SIZES, **ours)


FAMILIES = (
    "deformable_detr", "deformable_detr-two-stage", "rt_detr", "rt_detr_v2", "d_fine", "detr", "conditional_detr"
)  # fmt: skip


def write_hf(
    folder: Path,
    family: str,
    *,
    labels: int = 3,
    processor: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
) -> Path:
    """Save a model of the family with this many labels, `backbone` changed in its config; returns its folder."""
    config: Any = config_of(family)
    for key, value in (backbone or {}).items():
        setattr(config.backbone_config, key, value)
    config.id2label = {i: f"LABEL_{i}" for i in range(labels)}
    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(config)
    perturb(model)
    model.save_pretrained(folder)
    if processor is None:
        processor = SHORTEST if "detr" in family and not family.startswith("rt") else SQUARE
    names = {"rt": "RTDetrImageProcessor", "d": "RTDetrImageProcessor", "deformable": "DeformableDetrImageProcessor"}
    names |= {"detr": "DetrImageProcessor", "conditional": "ConditionalDetrImageProcessor"}
    name = names[family.partition("_")[0].partition("-")[0]]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name, **processor}))
    return folder


def perturb(model: nn.Module) -> None:
    """Away from an initialisation that hides mistakes: attention without offsets, boxes that are never refined."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "backbone" in name:
                parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn_like(buffer)
            if name.endswith("running_var"):
                buffer *= torch.rand_like(buffer) + 0.5


def own_processor(folder: Path) -> Any:
    """The checkpoint's image processor, for its post-processing."""
    return transformers.AutoImageProcessor.from_pretrained(folder)
