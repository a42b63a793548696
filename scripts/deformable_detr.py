"""transformers' Deformable DETR with the weights of one of our H-DETR networks: the oracle of tests and benchmarks.

Both compute the same once its queries start from learned rows (mixed selection), which a hook gives it.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.detectors.hdetr import HDetr

RENAMES = [
    (r"^backbone\.", "model.backbone.model."),
    (r"^encoder\.input_proj\.", "model.input_proj."),
    (r"^encoder\.level_embed$", "model.level_embed"),
    (r"^encoder\.layers\.", "model.encoder.layers."),
    (r"^(pos_trans|pos_trans_norm)\.", r"model.\1."),
    (r"^proposals\.(enc_output|enc_output_norm)\.", r"model.\1."),
    (r"^layers\.", "model.decoder.layers."),
    (r"^(model\.encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(model\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
]
"""Our names -> those of transformers 5, one after the other."""


def deformable_detr(network: HDetr, backbone_config: dict[str, Any] | None = None) -> nn.Module:
    """A DeformableDetrForObjectDetection that computes what `network` computes, in eval mode.

    backbone_config: of a transformers backbone with the channels of ours, which then runs in its place; None takes
    its own ResNet-50 with our weights.
    """
    import transformers

    layer: Any = network.layers[0]
    heads, levels, points = (getattr(layer.cross_attn, name) for name in ("heads", "levels", "points"))
    options: dict[str, Any] = {
        "two_stage": True,
        "with_box_refine": True,
        "two_stage_num_proposals": network.query_embed.num_embeddings,
        "num_queries": network.query_embed.num_embeddings,
        "num_labels": network.class_embed[0].out_features,
        "d_model": network.query_embed.embedding_dim,
        "encoder_layers": len(network.encoder.layers),
        "decoder_layers": len(network.layers),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_n_points": points,
        "decoder_n_points": points,
        "encoder_ffn_dim": layer.linear1.out_features,
        "decoder_ffn_dim": layer.linear1.out_features,
        "num_feature_levels": levels,
        "dropout": 0.0,
        "backbone_config": backbone_config,
        "use_pretrained_backbone": False,
    }
    config = transformers.DeformableDetrConfig(**options)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    state = their_state(network)
    if backbone_config is not None:
        model.model.backbone.model = OwnBackbone(network.backbone)
        state = {key: value for key, value in state.items() if not key.startswith("model.backbone.")}
    report = model.load_state_dict(state, strict=False)
    lacking = [key for key in report.missing_keys if not key.startswith("model.backbone.") or backbone_config is None]
    if lacking or report.unexpected_keys:
        raise ValueError(f"weights do not fit: missing {lacking}, left over {report.unexpected_keys}")

    def mixed_selection(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        rows = network.query_embed.weight.expand(len(kwargs["encoder_hidden_states"]), -1, -1)
        return args, {**kwargs, "inputs_embeds": rows}

    model.model.decoder.register_forward_pre_hook(mixed_selection, with_kwargs=True)
    return model


class OwnBackbone(nn.Module):
    """One of our backbones where transformers has its own: only the maps that the encoder reads."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Strides 8, 16, 32. "b 3 h w" -> "b c h w" each."""
        return self.backbone(images)[1:]


def their_state(network: HDetr) -> dict[str, Tensor]:
    """Our weights under their names; heads twice, as they store them."""
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        head = re.fullmatch(r"(proposals\.)?(class_embed|bbox_embed)\.(.+)", key)
        if head:
            index = f"{len(network.layers)}." if head[1] else ""  # the first stage comes last
            state[f"{head[2]}.{index}{head[3]}"] = state[f"model.decoder.{head[2]}.{index}{head[3]}"] = value
        elif key != "query_embed.weight":
            state |= split_attention(their_name(key), value)
    return state


def their_name(key: str) -> str:
    """One of our names as theirs."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def split_attention(key: str, value: Tensor) -> dict[str, Tensor]:
    """torch's joint projection as their three."""
    joint = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", key)
    if not joint:
        return {key: value}
    return {f"{joint[1]}.{name}_proj.{joint[2]}": part for name, part in zip("qkv", value.chunk(3), strict=True)}


@torch.inference_mode()
def logits_and_boxes(model: nn.Module, images: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the last layer of transformers' model gives; padding is True on padding, as for ours."""
    found = model(images, pixel_mask=None if padding is None else (~padding).long())
    return found.logits, found.pred_boxes
