"""A checkpoint of `transformers`: its folder, its weights, and what it says of images and classes.

Local folders are read without the network; a hub id is downloaded (or found in the hub's own cache) when it is opened.
"""

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.transforms import Transform
from ..errors import PipelineError
from .classes import Classes

FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)
"""What is fetched from the hub: no code, no pickles."""

NOT_IN_IDENTITY = ("_name_or_path", "transformers_version")
"""Keys of config.json that say where a checkpoint was, not what it is."""

COCO_91_ENDS = {("person", "toothbrush"), ("LABEL_1", "LABEL_90")}
"""Names of labels 1 and 90 where 91 labels are COCO's raw ids: named so, or not named at all."""

BILINEAR = 2
"""`resample`, in PIL's numbers."""


@dataclass(frozen=True)
class Checkpoint:
    """Files of one model, all local."""

    name: str
    """For people: the hub id, or the folder's own name, after "hf:"."""
    folder: Path
    config: dict[str, Any]
    """config.json"""
    weights: tuple[Path, ...]
    """The safetensors files, by name."""

    @property
    def architecture(self) -> str:
        """`model_type`, such as "rt_detr"."""
        return str(self.config.get("model_type"))

    def identity(self) -> dict[str, Any]:
        """What the model is, wherever it lies."""
        config = {key: value for key, value in self.config.items() if key not in NOT_IN_IDENTITY}
        content = hashlib.sha256()  # of the files one after the other: of a single file, its own
        for file in self.weights:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    content.update(block)
        return {
            "architecture": self.architecture,
            "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            "weights_sha256": content.hexdigest(),
        }


def open_checkpoint(folder_or_id: str) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as `PekingU/rtdetr_r18vd`, which may use the network."""
    folder = Path(folder_or_id).expanduser()
    if folder.is_dir():
        name = folder.resolve().name
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", folder_or_id):
        name, folder = folder_or_id, _download(folder_or_id)
    else:
        raise PipelineError(f"no folder {folder_or_id}", "hf:DIR with a config.json in it, or a hub id, hf:OWNER/NAME")
    for file in FILES[:2]:
        if not (folder / file).is_file():
            raise PipelineError(f"{folder} has no {file}", "it comes with the model, from `save_pretrained` or the hub")
    weights = tuple(sorted(file for pattern in (FILES[2], FILES[4]) for file in folder.glob(pattern)))
    if not weights:
        raise PipelineError(
            f"{folder} has no weights in safetensors",
            "save them so: model.save_pretrained(DIR, safe_serialization=True)",
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise PipelineError(f"{folder / 'config.json'} is not valid JSON: {error}") from None
    return Checkpoint(f"hf:{name}", folder, config, weights)


def _download(hub_id: str) -> Path:
    transformers_package()  # so that a missing extra is named first
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # no such model, no network, offline mode: each is one of the two
        raise PipelineError(
            f"'{hub_id}' is no folder here, and the hub does not give it: {_first_line(error)}",
            "download it elsewhere and pass the folder: hf:DIR",
        ) from None


def transformers_package() -> Any:
    """The package; raises PipelineError where it, or timm with the backbones of some models, is missing."""
    try:
        import timm  # noqa: F401
        import transformers
    except ImportError as error:
        raise PipelineError(f"hf: detectors need the package '{error.name}'", "pip install 'featcache[hf]'") from None
    return transformers


def load_model(checkpoint: Checkpoint) -> Any:
    """The object detection model in float32; every parameter comes from the files."""
    package = transformers_package()
    folder = str(checkpoint.folder)
    with quiet(package):
        try:
            config = package.CONFIG_MAPPING[checkpoint.architecture].from_dict(local_config(checkpoint.config))
            model, told = package.AutoModelForObjectDetection.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # the package raises kinds of its own
            raise PipelineError(f"{folder} does not load as a detector: {_first_line(error)}") from None
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(parameters & set(told["missing_keys"])) + sorted(str(key) for key in told["mismatched_keys"])
    if missing:
        raise PipelineError(
            f"{folder} lacks {len(missing)} parameters of {type(model).__name__}, such as {missing[0]}",
            f"it is another kind of model, or too new or old for transformers {package.__version__}",
        )
    return model


def local_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without what makes some release of `transformers` look for the backbone on the hub, or refuse it.

    Older ones would download weights for it, to overwrite them at once. Newer ones ask the hub about it where there are
    `backbone_kwargs`, which older ones wrote although they said no more than the defaults; nor may `dilation` be null.
    """
    config = copy.deepcopy(config)  # the package changes what it is given
    if "use_pretrained_backbone" in config:
        config["use_pretrained_backbone"] = False
    indices = [1, 2, 3, 4]
    if config["model_type"] == "deformable_detr":
        indices = [2, 3, 4] if config.get("num_feature_levels", 4) > 1 else [4]
    defaults = {"in_chans": config.get("num_channels", 3), "out_indices": indices}
    if config.get("dilation"):
        defaults["output_stride"] = 16
    elif "dilation" in config:
        config["dilation"] = False
    if config.get("use_timm_backbone") and config.get("backbone_kwargs") == defaults:
        del config["backbone_kwargs"]
    return config


def transform_of(checkpoint: Checkpoint) -> Transform:
    """The checkpoint's own image processing; raises PipelineError where it is not a resize and a normalisation.

    Two things follow DETR's official code instead of `transformers`: PIL resizes the image, and in images that reach
    `longest_edge` the long side follows from the rounded short side, which moves it by at most half the aspect ratio.
    """
    package = transformers_package()
    where = f"{checkpoint.folder / FILES[1]}"
    with quiet(package):
        try:
            processor = package.AutoImageProcessor.from_pretrained(
                str(checkpoint.folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the package raises kinds of its own
            raise PipelineError(f"{where} does not load: {_first_line(error)}") from None
    size = {key: int(value) for key, value in dict(processor.size).items() if value}
    refused = {
        "do_resize": processor.do_resize is False,
        "resample": processor.resample != BILINEAR,
        "do_center_crop": bool(getattr(processor, "do_center_crop", False)),
        "pad_size": bool(getattr(processor, "pad_size", None)),
    }
    for key, wrong in refused.items():
        if wrong:
            raise PipelineError(
                f"{where}: {key} = {getattr(processor, key)} is not something this package does to images",
                "hf: models take images resized (bilinear) and normalised, not cropped, not padded to one size",
            )
    mean, std = _normalisation(processor)
    if set(size) == {"shortest_edge", "longest_edge"}:
        return Transform("shortest", size["shortest_edge"], size["longest_edge"], mean, std)
    if set(size) == {"height", "width"} and size["height"] == size["width"]:
        return Transform("square", size["height"], mean=mean, std=std)
    raise PipelineError(
        f"{where}: no resize to size = {size} is known here",
        "known: shortest_edge with longest_edge, or one height and width for both",
    )


def _normalisation(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of RGB values in 0-1, whatever the processor's own scale."""
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    scale = 1.0 if math.isclose(scale, 1) else scale
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    (r, g, b), (dr, dg, db) = ([float(value) / scale for value in values] for values in (mean, std))
    return (r, g, b), (dr, dg, db)


def classes_of(labels: dict[int, str]) -> Classes:
    """What the columns of the class logits are, from `id2label`: COCO's 91 raw ids, or the categories in order."""
    if sorted(labels) == list(range(91)) and (labels[1], labels[90]) in COCO_91_ENDS:
        return "coco-91"
    return "contiguous"


@contextmanager
def quiet(package: Any) -> Iterator[None]:
    """No progress bars and messages of `transformers` inside; errors still raise."""
    logging = package.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
