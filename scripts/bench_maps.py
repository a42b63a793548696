"""The features that bench_cache.py stores: synthetic ones, those of a cache, or those of a trained ResNet-50."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, group_norm, interpolate, layer_norm
from torchvision.models import resnet50

from featcache import Cache, LevelSpec

INPUT_HW = (800, 1216)
LEVELS = (
    LevelSpec("c1", 4, 256, (200, 304)),
    LevelSpec("e8", 8, 256, (100, 152)),
    LevelSpec("e16", 16, 256, (50, 76)),
    LevelSpec("e32", 32, 256, (25, 38)),
    LevelSpec("e64", 64, 256, (13, 19)),
)
Maps = dict[str, Tensor]
"""By level, "c h w"."""

_KERAS_MEAN_BGR = (103.939, 116.779, 123.68)
_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def synthetic_maps(count: int) -> list[Maps]:
    """Maps correlated as trained ones are (0.8 to the next cell); C1 behind a ReLU."""
    return [_synthetic(seed) for seed in range(count)]


def cached_maps(path: Path, count: int) -> tuple[tuple[LevelSpec, ...], list[Maps]]:
    """Levels and maps of the first images of a cache."""
    cache = Cache(path)
    return cache.spec.levels, [cache[i].maps for i in np.flatnonzero(cache.done())[:count].tolist()]


@torch.no_grad()
def resnet_maps(weights: Path, images: Path, count: int) -> list[Maps]:
    """Maps of real photographs by an ImageNet ResNet-50, in the place of a detector's.

    C1 is the output of the first stage, as a detector has it. Nobody gives away a trained encoder in an open format, so
    the encoder maps are C3, C4, C5 and C5 at half size, each through a fixed random orthonormal projection to 256
    channels and the two normalisations that such a map passes in a detector (group norm of the input projection,
    layer norm of the encoder). Their neighbourhoods, edges and flat regions are those of pictures, which synthetic maps
    lack; the projection mixes many channels, so that outlying channels of a trained encoder are milder here.
    """
    model = _load_resnet(weights)
    generator = torch.Generator().manual_seed(0)
    projections = [torch.linalg.qr(torch.randn(c, 256, generator=generator)).Q.T for c in (512, 1024, 2048)]
    found: list[Maps] = []
    for path in _landscapes(images, count):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize(INPUT_HW[::-1], Image.Resampling.BILINEAR), np.float32)
        bgr = torch.from_numpy(pixels[..., ::-1] - np.array(_KERAS_MEAN_BGR, np.float32)).permute(2, 0, 1)[None]
        x = model.maxpool(model.relu(model.bn1(model.conv1(bgr))))
        c1 = model.layer1(x)
        c3 = model.layer2(c1)
        c4 = model.layer3(c3)
        c5 = model.layer4(c4)
        pyramid = [torch.einsum("oc,bchw->bohw", p, c) for p, c in zip(projections, (c3, c4, c5), strict=True)]
        pyramid.append(avg_pool2d(pyramid[-1], 2, ceil_mode=True))
        maps = {level.name: _normalised(values)[0] for level, values in zip(LEVELS[1:], pyramid, strict=True)}
        found.append({"c1": c1[0], **maps})
    return found


def _synthetic(seed: int) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    maps: Maps = {}
    for level in LEVELS:
        h, w = level.max_hw
        noise = torch.randn(1, level.channels, h + 2, w + 2, generator=generator)
        coarse = torch.randn(1, level.channels, h // 6 + 2, w // 6 + 2, generator=generator)
        values = 1.5 * avg_pool2d(noise, 3, 1) + interpolate(coarse, size=(h, w), mode="bilinear")
        values *= torch.rand(1, level.channels, 1, 1, generator=generator) * 2
        maps[level.name] = (values.relu() if level.name == "c1" else values)[0]
    return maps


def _normalised(values: Tensor) -> Tensor:
    values = group_norm(values, 32)
    return layer_norm(values.permute(0, 2, 3, 1), [values.shape[1]]).permute(0, 3, 1, 2)


def _landscapes(folder: Path, count: int) -> list[Path]:
    """The first photographs of about 3 : 2, which 800 x 1216 hardly stretches."""
    found: list[Path] = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            if abs(image.width / image.height - 1.5) < 0.03:
                found.append(path)
        if len(found) == count:
            return found
    raise SystemExit(f"{folder} has {len(found)} landscape photographs of 3 : 2, {count} are needed")


def _load_resnet(model_json: Path) -> Any:
    """ResNet-50 with the weights of a TensorFlow.js layers model of Keras's ResNet50: JSON beside raw float32."""
    manifest = json.loads(model_json.read_text())["weightsManifest"]
    arrays: dict[str, NDArray[np.float32]] = {}
    for group in manifest:
        data = b"".join((model_json.parent / name).read_bytes() for name in group["paths"])
        values, start = np.frombuffer(data, "<f4"), 0
        for weight in group["weights"]:
            size = int(np.prod(weight["shape"]))
            arrays[weight["name"]] = values[start : start + size].reshape(weight["shape"])
            start += size
    model: Any = resnet50().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3  # Keras's
    for layer in (model.layer2, model.layer3, model.layer4):  # Keras strides in the first convolution of a block
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        layer, part = name.split("/")
        if part == "kernel" and array.ndim == 4:
            state[f"{_torch_name(layer)}.weight"] = torch.tensor(array.transpose(3, 2, 0, 1).copy())
        elif part in _PARTS:
            state[f"{_torch_name(layer)}.{_PARTS[part]}"] = torch.tensor(array)
    for name, array in arrays.items():  # a convolution's bias moves the mean that follows it
        layer, part = name.split("/")
        if part == "bias" and not layer.startswith("fc"):
            state[f"{_torch_name(_norm_of(layer))}.running_mean"] -= torch.tensor(array)
    state |= {
        "fc.weight": torch.tensor(arrays["fc1000/kernel"].T.copy()),
        "fc.bias": torch.tensor(arrays["fc1000/bias"]),
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"{model_json} lacks {missing}")
    return model


def _norm_of(layer: str) -> str:
    return "bn_conv1" if layer == "conv1" else layer.replace("res", "bn", 1)


def _torch_name(layer: str) -> str:
    """`res2a_branch2b` -> `layer1.0.conv2`, `bn2a_branch1` -> `layer1.0.downsample.1`."""
    kind = "conv" if layer.startswith(("res", "conv")) else "bn"
    if layer in ("conv1", "bn_conv1"):
        return f"{kind}1"
    block, branch = layer.removeprefix("res").removeprefix("bn").split("_branch")
    prefix = f"layer{int(block[0]) - 1}.{ord(block[1]) - ord('a')}"
    if branch == "1":
        return f"{prefix}.downsample.{0 if kind == 'conv' else 1}"
    return f"{prefix}.{kind}{'abc'.index(branch[1]) + 1}"
