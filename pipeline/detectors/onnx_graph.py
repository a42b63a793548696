"""ONNX graph surgery: make inner tensors the outputs, and drop what none of them needs."""

from collections.abc import Sequence
from typing import Any

import onnx

from ..errors import PipelineError, nearest


def expose(content: bytes, image_input: str, tensors: Sequence[str], where: str) -> bytes:
    """The model with `tensors` as its outputs and `image_input` as its only input; `where` opens the messages."""
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf raises kinds of its own
        raise PipelineError(f"{where} is not an ONNX file: {error}") from None
    graph = model.graph
    _check_made(graph, tensors, where)
    nodes, needed = _needed(graph, tensors)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name in needed and value.name not in constants]
    _check_inputs([value.name for value in inputs], image_input, where)
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(tensors)]
    smaller = onnx.helper.make_graph(
        nodes, graph.name, inputs, outputs, [t for t in graph.initializer if t.name in needed]
    )
    smaller.sparse_initializer.extend(graph.sparse_initializer)
    model.graph.CopyFrom(smaller)
    return model.SerializeToString()


def _check_made(graph: Any, tensors: Sequence[str], where: str) -> None:
    made = [name for node in graph.node for name in node.output]
    for name in tensors:
        if name not in made:
            close = nearest(name, made, count=3)
            raise PipelineError(
                f"{where} has no tensor '{name}'",
                f"nearest: {close}" if close else "a viewer such as netron lists them",
            )


def _check_inputs(names: list[str], image_input: str, where: str) -> None:
    if image_input not in names:
        raise PipelineError(
            f"{where} has no input '{image_input}' that the taps depend on", f"its inputs: {', '.join(names)}"
        )
    if len(names) > 1:
        others = ", ".join(name for name in names if name != image_input)
        raise PipelineError(
            f"{where}: the taps depend on more than the image: {others}", "export the model with these inputs fixed"
        )


def _needed(graph: Any, tensors: Sequence[str]) -> tuple[list[Any], set[str]]:
    """The nodes that `tensors` depend on, in graph order, and the names of everything these read."""
    needed, nodes = set(tensors), []
    for node in reversed(graph.node):  # ONNX keeps nodes in topological order
        if needed.intersection(node.output):
            nodes.append(node)
            needed |= _reads(node)
    return nodes[::-1], needed


def _reads(node: Any) -> set[str]:
    """Names a node reads, those inside the branches of an If and the body of a Loop included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(name for inner in graph.node for name in _reads(inner))
            names.update(output.name for output in graph.output)
    return names
