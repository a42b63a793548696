"""A whole world of a few KB: eight drawn pictures with COCO annotations, and a random DETR in ONNX with its TOML."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

SIDE = 64
CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 1, "name": "square"}, {"id": 3, "name": "triangle"}]
WIDTH, QUERIES = 8, 16


@dataclass(frozen=True)
class Tiny:
    """Paths of everything, and the arguments of `extract.main` that name them."""

    images: Path
    annotations: Path
    weights: Path
    toml: Path

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "detector": str(self.toml),
            "weights": self.weights,
            "images": self.images,
            "annotations": self.annotations,
        }


def write_tiny(folder: Path) -> Tiny:
    """Write pictures, annotations, weights and TOML."""
    annotations = write_coco(folder)
    write_onnx(folder / "tiny.onnx")
    (folder / "tiny.toml").write_text(TOML)
    return Tiny(folder / "images", annotations, folder / "tiny.onnx", folder / "tiny.toml")


def write_coco(folder: Path) -> Path:
    """Eight pictures of 40-60 x 50-70 pixels: polygons, one crowd as RLE, one picture empty. Returns the JSON."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(8):
        height, width = int(rng.integers(40, 61)), int(rng.integers(50, 71))
        picture = Image.new("RGB", (width, height), tuple(rng.integers(0, 90, 3).tolist()))
        info = {"id": 100 - 7 * number, "height": height, "width": width, "file_name": f"{100 - 7 * number:012d}.png"}
        images.append(info)
        for _ in range(0 if number == 5 else 2):
            label = int(rng.integers(3))
            polygon = shape(label, rng.uniform(14, width - 14), rng.uniform(14, height - 14), rng.uniform(6, 12))
            ImageDraw.Draw(picture).polygon(polygon, fill=tuple(rng.integers(120, 256, 3).tolist()))
            annotations.append(annotation(len(annotations) + 1, info["id"], CATEGORIES[label]["id"], polygon))
        picture.save(folder / "images" / info["file_name"])
    annotations.append(crowd(len(annotations) + 1, images[2]))
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return file


def shape(label: int, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Disc, square or triangle as a polygon."""
    corners = (24, 4, 3)[label]
    angles = 2 * np.pi * np.arange(corners) / corners
    return [(float(x + radius * np.cos(a)), float(y + radius * np.sin(a))) for a in angles]


def annotation(number: int, image_id: int, category_id: int, polygon: list[tuple[float, float]]) -> dict[str, Any]:
    xs, ys = np.array(polygon).T
    area = 0.5 * abs(float(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [[value for point in polygon for value in point]],
        "bbox": [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))],
        "area": area,
        "iscrowd": 0,
    }


def crowd(number: int, info: dict[str, Any]) -> dict[str, Any]:
    """The left five columns, as uncompressed RLE."""
    height, width = info["height"], info["width"]
    counts = [0, 5 * height, (width - 5) * height]
    return {
        "id": number,
        "image_id": info["id"],
        "category_id": 1,
        "segmentation": {"size": [height, width], "counts": counts},
        "bbox": [0.0, 0.0, 5.0, float(height)],
        "area": 5.0 * height,
        "iscrowd": 1,
    }


def write_onnx(file: Path, *, classes: int = 3, batch: int | str = "N") -> Path:
    """A random DETR: c1, e8, e16, 16 queries of width 8; its own outputs are in pixels and want the image size too."""
    rng = np.random.default_rng(1)
    constants = {
        "w4": rng.normal(0, 0.3, (WIDTH, 3, 4, 4)),
        "w8": rng.normal(0, 0.3, (WIDTH, WIDTH, 2, 2)),
        "w16": rng.normal(0, 0.3, (WIDTH, WIDTH, 2, 2)),
        "w_class": rng.normal(0, 1.5, (WIDTH, classes)),
        "w_box": rng.normal(0, 1.0, (WIDTH, 4)),
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([0, WIDTH, -1], dtype=np.int64), "flat"))
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "w4"], ["/c1/conv"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Relu", ["/c1/conv"], ["/c1/out"]),
        node("Conv", ["/c1/out", "w8"], ["/e8/out"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["/e8/out", "w16"], ["/e16/out"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["/e16/out", "flat"], ["/decoder/flat"]),
        node("Transpose", ["/decoder/flat"], ["/decoder/queries"], perm=[0, 2, 1]),
        node("MatMul", ["/decoder/queries", "w_class"], ["/decoder/logits"]),
        node("MatMul", ["/decoder/queries", "w_box"], ["/decoder/box_logits"]),
        node("Sigmoid", ["/decoder/box_logits"], ["/decoder/boxes"]),
        node("Cast", ["sizes"], ["/post/sizes"], to=TensorProto.FLOAT),
        node("Mul", ["/decoder/boxes", "/post/sizes"], ["pixels"]),
    ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [1, 1, 4]),
    ]
    outputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, QUERIES, 4])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


TOML = """
kind = "onnx"
name = "tiny"
summary = "random weights"
input = "images"
top_k = 20

[transform]
resize = "square"
size = 64
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[outputs]
scores = "/decoder/logits"
boxes = "/decoder/boxes"
queries = "/decoder/queries"

[[taps]]
name = "c1"
role = "backbone"
stride = 4
tensor = "/c1/out"

[[taps]]
name = "e16"
role = "encoder"
stride = 16
tensor = "/e16/out"

[[taps]]
name = "e8"
role = "encoder"
stride = 8
tensor = "/e8/out"
"""
