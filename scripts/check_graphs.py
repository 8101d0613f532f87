#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["onnx==1.23.2"]
# ///
"""Looks at graphs with ONNX's own checker and shape inference.

    cargo test --test models graphs_are_written -- --ignored
    scripts/check_graphs.py target/tmp/graphs

Each file has to pass the checker, strict type and shape inference included (operators of ONNX Runtime's own domain,
com.microsoft, have no rules there and are passed over), and what inference finds for the outputs must not contradict
what the graph declares. The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import onnx
from onnx import checker, shape_inference


def faults_of(model: onnx.ModelProto) -> list[str]:
    """What is wrong with a graph, in ONNX's words."""
    try:
        checker.check_model(model, full_check=True)
        inferred = shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        return [str(error)]
    declared = {it.name: it.type.tensor_type for it in model.graph.output}
    faults = []
    for output in inferred.graph.output:
        found, want = output.type.tensor_type, declared[output.name]
        if found.elem_type != want.elem_type or len(found.shape.dim) != len(
            want.shape.dim
        ):
            faults.append(f"{output.name} is declared as {want}, and found to be {found}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with .onnx files")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.onnx"))
    if not files:
        print(f"check_graphs: there is no graph in {arguments.folder}", file=sys.stderr)
        return 1
    wrong = 0
    operators: Counter[str] = Counter()
    for file in files:
        model = onnx.load(file)
        operators.update(
            node.op_type for node in model.graph.node if node.domain == "com.microsoft"
        )
        for fault in faults_of(model):
            wrong += 1
            print(f"{file.name}: {fault}", file=sys.stderr)
    print(f"{len(files)} graphs, {wrong} faults; of com.microsoft: {dict(operators)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
