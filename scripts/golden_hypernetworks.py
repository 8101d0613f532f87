#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy<2",
#     "torch==2.1.2",
# ]
# ///
"""Writes tests/golden/hypernetworks: hypernetwork files of every form, and what their modules answer.

The modules are torch's own, in the order that A1111 documents: linear, activation, layer
normalisation, dropout; `x + multiplier * module(x)`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

WIDTH = 6
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "mish": nn.Mish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
}


def module(structure: list[int], activation: str, last: bool, norm: bool, dropout: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for index in range(len(structure) - 1):
        outputs = WIDTH * structure[index + 1]
        layers.append(nn.Linear(WIDTH * structure[index], outputs))
        is_last = index == len(structure) - 2
        if activation != "linear" and (last or not is_last):
            layers.append(ACTIVATIONS[activation]())
        if norm:
            layers.append(nn.LayerNorm(outputs))
        if dropout and not is_last:
            layers.append(nn.Dropout(0.3))
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.7)
    return nn.Sequential(*layers).eval()


def weights(made: nn.Module, old: bool) -> dict[str, torch.Tensor]:
    state = made.state_dict()
    if old:
        order = sorted({name.split(".")[0] for name in state}, key=int)
        return {
            f"linear{order.index(name.split('.')[0]) + 1}.{name.split('.')[1]}": value
            for name, value in state.items()
        }
    return {f"linear.{name}": value for name, value in state.items()}


def write_single_layers(folder: Path) -> None:
    """One linear layer without bias for the context widths of tiny-sd1, and its matrices alone."""
    folder.mkdir(exist_ok=True)
    saved: dict[int | str, object] = {"activation_func": "linear", "layer_structure": [1, 1]}
    layers = {}
    for width in (64, 128):
        pair = [torch.randn(width, width).half().float() * 0.01 for _ in range(2)]
        saved[width] = tuple(
            {"linear.0.weight": matrix, "linear.0.bias": torch.zeros(width)} for matrix in pair
        )
        layers |= {f"{width}.{side}": matrix for side, matrix in enumerate(pair)}
    torch.save(saved, folder / "one_layer.pt")
    torch.save(layers, folder / "layers.pt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests/golden/hypernetworks")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    x = torch.randn(3, WIDTH)
    plans = {name: ([1, 2, 1], name, True, False, False) for name in ACTIVATIONS}
    plans["linear"] = ([1, 2, 1], "linear", True, False, False)
    plans["quiet_end"] = ([1, 2, 2, 1], "relu", False, False, False)
    plans["norm"] = ([1, 2, 1], "relu", True, True, False)
    plans["dropout"] = ([1, 3, 2, 1], "mish", False, True, True)
    plans["old"] = ([1, 2, 1], "linear", True, False, False)
    cases = []
    for name, (structure, activation, last, norm, dropout) in plans.items():
        pair = [module(structure, activation, last, norm, dropout) for _ in range(2)]
        old = name == "old"
        saved = {
            "step": 10,
            "name": name,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            WIDTH: tuple(weights(made, old) for made in pair),
        }
        if not old:
            saved |= {
                "layer_structure": structure,
                "activation_func": activation,
                "is_layer_norm": norm,
                "weight_initialization": "Normal",
                "use_dropout": dropout,
                "activate_output": last,
                "last_layer_dropout": False,
                "dropout_structure": None,
                "optional_info": "",
            }
        torch.save(saved, folder / f"{name}.pt")
        with torch.no_grad():
            want = [(x + 0.5 * made(x)).flatten().tolist() for made in pair]
        cases.append({"name": name, "want": want})
    document = {
        "made_by": f"scripts/golden_hypernetworks.py, torch {torch.__version__}",
        "tolerance": 1e-5,
        "width": WIDTH,
        "multiplier": 0.5,
        "x": x.flatten().tolist(),
        "cases": cases,
    }
    write_single_layers(folder / "merged")
    (folder / "hypernetworks.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
