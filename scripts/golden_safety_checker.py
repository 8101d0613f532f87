"""Writes tests/data/safety_checker.onnx: a checker with the published one's inputs and outputs that flags bright pictures.

    python scripts/golden_safety_checker.py

Needs the package onnx.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def main() -> None:
    """Writes the file."""
    any_size = ["batch", "height", "width", 3]
    nodes = [
        helper.make_node("ReduceMean", ["images", "picture_axes"], ["brightness"], keepdims=0),
        helper.make_node("ReduceMean", ["clip_input", "picture_axes"], ["seen"], keepdims=0),
        helper.make_node("Greater", ["brightness", "half"], ["is_bright"]),
        helper.make_node("Greater", ["seen", "zero"], ["looks_bright"]),
        helper.make_node("And", ["is_bright", "looks_bright"], ["has_nsfw_concepts"]),
        helper.make_node("Identity", ["images"], ["out_images"]),
    ]
    graph = helper.make_graph(
        nodes,
        "safety_checker",
        [
            helper.make_tensor_value_info("clip_input", TensorProto.FLOAT, ["batch", 3, 224, 224]),
            helper.make_tensor_value_info("images", TensorProto.FLOAT, any_size),
        ],
        [
            helper.make_tensor_value_info("out_images", TensorProto.FLOAT, any_size),
            helper.make_tensor_value_info("has_nsfw_concepts", TensorProto.BOOL, ["batch"]),
        ],
        [
            helper.make_tensor("picture_axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path = Path(__file__).parent.parent / "tests" / "data" / "safety_checker.onnx"
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
