"""Weights files -> networks: the official H-DETR and DINO checkpoints, unchanged, and files with our own names.

Every key of an official file is used exactly once, or known to serve training only, or the load fails naming it.
"""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import PipelineError

Family = Literal["hdetr", "dino"]

ONE_TO_MANY = 1500
"""Rows of H-DETR's `query_embed` behind the one-to-one queries: its hybrid branch, for training only."""

TRAINING_ONLY = re.compile(r"label_enc\.weight|(.*\.)?total_(params|ops)")
"""DINO's embedding of noised labels, and counters that a profiler left."""

BOTH = [
    (r"backbone\.0\.(body\.)?", "backbone."),
    (r"input_proj\.", "encoder.input_proj."),
    (r"transformer\.level_embed$", "encoder.level_embed"),
    (r"transformer\.encoder\.layers\.", "encoder.layers."),
    (r"transformer\.decoder\.layers\.", "layers."),
    (r"transformer\.(enc_output|enc_output_norm)\.", r"proposals.\1."),
]
RENAMES: dict[Family, list[tuple[str, str]]] = {
    "hdetr": [
        *BOTH,
        (r"transformer\.(pos_trans|pos_trans_norm)\.", r"\1."),
        (r"(transformer\.decoder\.)?(class|bbox)_embed\.(\d+)\.", r"\2_embed.\3."),  # stored twice
        (r"query_embed\.", "query_embed."),
    ],
    "dino": [
        *BOTH,
        (r"transformer\.decoder\.(norm|ref_point_head)\.", r"\1."),
        (r"transformer\.enc_out_(class|bbox)_embed\.", r"proposals.\1_embed."),
        (r"(transformer\.decoder\.)?(class|bbox)_embed\.\d+\.", r"\2_embed."),  # one head, stored twelve times
        (r"transformer\.tgt_embed\.", "tgt_embed."),
    ],
}
"""Start of an official name -> start of ours; the first that matches counts."""


@dataclass(frozen=True)
class Looks:
    """What the keys and shapes of an official checkpoint tell about its detector."""

    family: str
    backbone: str
    levels: int
    queries: int
    classes: int

    def __str__(self) -> str:
        return f"{self.family} on {self.backbone}, {self.levels} levels, {self.queries} queries, {self.classes} classes"


OFFICIAL = {
    Looks("H-DETR", "ResNet-50", 4, 300, 91): "hdetr-r50",
    Looks("H-DETR", "Swin-L, window 7", 4, 300, 91): "hdetr-swin-l",
    Looks("H-DETR", "Swin-L, window 7", 4, 900, 91): "hdetr-swin-l-900",
    Looks("DINO", "ResNet-50", 4, 900, 91): "dino-r50",
    Looks("DINO", "Swin-L, window 12", 4, 900, 91): "dino-swin-l",
    Looks("DINO", "FocalNet-L, 4 focal levels", 5, 900, 91): "dino-focalnet-l",
}
"""The official detectors that have a config here, and its name."""


def load_weights(network: nn.Module, family: Family, file: Path, *, detector: str) -> str:
    """Fill `network` from an official checkpoint or a file with our own names; returns the sha256 of the file.

    The network may be on the meta device; its weights become float32 on the processor. `detector` is its name in the
    PipelineError raised if a key is missing, left over or of another shape, or two copies of one weight differ.
    """
    state = read_state(file)
    places = network.state_dict()
    problems: dict[str, list[str]] = {}
    if is_official(state):
        ours, problems = rename(state, family, len(network.layers))  # pyright: ignore[reportArgumentType]
        hint = looks_hint(state, detector)
    else:
        ours, hint = state, f"its keys are not of an official checkpoint; expected a file of '{detector}'"
    problems = fit(ours, {name: tuple(tensor.shape) for name, tensor in places.items()}) | problems
    if any(problems.values()):
        parts = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
        raise PipelineError(f"{file} is not a checkpoint of '{detector}': {'; '.join(parts)}", hint)
    network.load_state_dict({name: _own(ours[name], place.dtype) for name, place in places.items()}, assign=True)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of a `.safetensors` or a torch checkpoint, without a leading `module.`; runs no code in it."""
    content = _read(file)
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise PipelineError(f"{file} holds no weights", "expected a checkpoint with its weights under the key 'model'")
    if strange := [key for key in state if not isinstance(key, str)]:
        raise PipelineError(f"{file}: {strange[0]!r} names no weight", "expected weights by their names")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not TRAINING_ONLY.fullmatch(key)}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise PipelineError(f"{file}: '{key}' is no tensor", "expected a checkpoint with its weights under 'model'")
    return state


def _read(file: Path) -> Any:
    if not file.is_file():
        raise PipelineError(f"no weights file {file}", "pass the detector's weights: --weights FILE")
    if file.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise PipelineError(f"{file} is not a whole safetensors file: {error}", "download it again") from None
    try:
        # the official files hold their command-line arguments too, as plain values in a Namespace
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:  # says itself which file and why
        raise
    except pickle.UnpicklingError as error:
        raise PipelineError(
            f"{file} is not a checkpoint that can be read without running code from it: {_first_line(error)}",
            "if you trust it, keep only its weights: torch.save({'model': torch.load(FILE)['model']}, NEW)",
        ) from None
    except Exception as error:  # bytes that are no checkpoint end the reader anywhere: KeyError, IndexError, ...
        raise PipelineError(
            f"{file} is no weights file, or a damaged one: {type(error).__name__}: {_first_line(error)}",
            "expected a .safetensors file or a checkpoint of torch.save",
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the official code (or of one of its kin), and not ours."""
    return any(key.startswith(("transformer.", "backbone.0.", "model.", "neck.")) for key in state)


def rename(
    state: Mapping[str, Tensor], family: Family, decoder_layers: int
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Weights under our names, copies of one weight as one; and what is wrong: keys without a name, unequal copies."""
    ours: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    problems: dict[str, list[str]] = {"unknown": [], "unlike what should be the same weight": []}
    for key, tensor in state.items():
        name = our_name(key, family, decoder_layers)
        if name is None:
            problems["unknown"].append(key)
        elif name not in ours:
            ours[name], first[name] = tensor, key
        elif not torch.equal(ours[name], tensor):
            problems["unlike what should be the same weight"].append(f"{key}, {first[name]}")
    return ours, problems


def our_name(key: str, family: Family, decoder_layers: int) -> str | None:
    """Our name of an official key, None if it has none."""
    for pattern, start in RENAMES[family]:
        name, count = re.subn(f"^{pattern}", start, key)
        if count:
            # H-DETR counts the head of the first stage as one more of the decoder
            return re.sub(rf"^(class|bbox)_embed\.{decoder_layers}\.", r"proposals.\1_embed.", name)
    return None


def fit(ours: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """What of `ours` does not fit these shapes; first cuts H-DETR's queries in place to the one-to-one ones."""
    embed, wanted = ours.get("query_embed.weight"), shapes.get("query_embed.weight")
    if embed is not None and wanted is not None and len(embed) == wanted[0] + ONE_TO_MANY:
        ours["query_embed.weight"] = embed[: wanted[0]]
    common = [name for name in shapes if name in ours]
    return {
        "missing": [name for name in shapes if name not in ours],
        "left over": [name for name in ours if name not in shapes],
        "of another shape": [
            f"{name}: {tuple(ours[name].shape)}, expected {shapes[name]}"
            for name in common
            if tuple(ours[name].shape) != shapes[name]
        ],
    }


def looks_hint(state: Mapping[str, Tensor], detector: str) -> str:
    """What the file seems to be, and what to do."""
    looks = recognise(state)
    if looks is None:
        kin = {
            "neck.": "a detrex checkpoint, whose numbers differ",
            "model.": "of transformers: --detector hf:DIR",
            "transformer.pos_trans.": "Deformable DETR without mixed selection, which H-DETR has",
        }
        for start, what in kin.items():
            if any(key.startswith(start) for key in state):
                return f"it looks like {what}"
        return "it looks like no official checkpoint of H-DETR or DINO"
    name = OFFICIAL.get(looks)
    if name is None:
        return f"it looks like {looks}, which no shipped detector is"
    return f"it looks like {looks}" + (": the file may be damaged" if name == detector else f": --detector {name}")


def recognise(state: Mapping[str, Tensor]) -> Looks | None:
    """What an official checkpoint is of; None if it is of neither family."""
    family = {"transformer.pos_trans.weight": "H-DETR", "transformer.tgt_embed.weight": "DINO"}
    found = [name for key, name in family.items() if key in state]
    queries = state.get("query_embed.weight", state.get("transformer.tgt_embed.weight"))
    if not found or queries is None or "transformer.level_embed" not in state or "class_embed.0.bias" not in state:
        return None
    rows = len(queries)
    return Looks(
        family=found[0],
        backbone=_backbone(
            {
                key.partition(".0.")[2].removeprefix("body."): t
                for key, t in state.items()
                if key.startswith("backbone.0.")
            }
        ),
        levels=len(state["transformer.level_embed"]),
        queries=rows - ONE_TO_MANY if found[0] == "H-DETR" and rows > ONE_TO_MANY else rows,
        classes=len(state["class_embed.0.bias"]),
    )


def _backbone(state: Mapping[str, Tensor]) -> str:
    if "layer1.0.conv1.weight" in state:
        return "ResNet-50" if "layer3.5.conv1.weight" in state and "layer3.6.conv1.weight" not in state else "a ResNet"
    if "patch_embed.proj.weight" not in state:
        return "an unknown backbone"
    size = {96: "T or S", 128: "B", 192: "L"}.get(len(state["patch_embed.proj.weight"]), "?")
    index = state.get("layers.0.blocks.0.attn.relative_position_index")
    if index is not None:
        return f"Swin-{size}, window {round(len(index) ** 0.5)}"
    focal = sum(key.startswith("layers.0.blocks.0.modulation.focal_layers.") for key in state)
    return f"FocalNet-{size}, {focal} focal levels" if focal else "an unknown backbone"


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: the file behind the tensor may be memory-mapped, and has other things in it."""
    return tensor.to(dtype, copy=True)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
