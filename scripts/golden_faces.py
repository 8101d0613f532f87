# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "einops==0.8.1",
#     "facexlib==0.3.0",
#     "numpy==1.26.4",
#     "opencv-python-headless==4.9.0.80",
#     "pillow==13.0.0",
#     "spandrel==0.4.2",
#     "spandrel_extra_arches==0.2.0",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
# ]
# ///
"""Writes tests/golden/faces: what torch makes of tiny face networks, and what facexlib makes of pictures.

Weights and pictures come from a formula that the tests repeat, so that only names, shapes and answers are
stored. The networks are those of facexlib and spandrel with few channels; the face pass is facexlib's
FaceRestoreHelper around a detector, a restorer and a parser that are written down here.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from unittest import mock

import cv2
import facexlib.utils.face_restoration_helper as helper_module
import numpy as np
import torch
from facexlib.detection.retinaface import RetinaFace
from facexlib.detection.retinaface_net import (
    FPN,
    SSH,
    make_bbox_head,
    make_class_head,
    make_landmark_head,
)
from facexlib.parsing.parsenet import ParseNet
from PIL import Image
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet

KEPT = 240


def fnv(name: str) -> int:
    """FNV-1a, 32 bit."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


def hashed(name: str, count: int) -> np.ndarray:
    """`count` numbers in -1..1: murmur3's finalizer of a counter."""
    x = (np.arange(count, dtype=np.uint64) * 0x9E3779B1 + fnv(name)) % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    x = x ^ (x >> 16)
    return x.astype(np.float64) / 2.0**31 - 1.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor, as the tests make it."""
    values = hashed(name, math.prod(shape))
    if "Head." in name:
        # Small enough for scores between 0 and 1.
        values = 0.02 * values
    if name.endswith("running_var"):
        values = 1.0 + 0.5 * values
    elif ".noises." in name:
        values = 1.7 * values
    elif len(shape) >= 2:
        values = values * math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1.0 + 0.1 * values
    else:
        values = 0.1 * values
    return values.astype(np.float32).reshape(shape)


def fill(net: nn.Module) -> dict[str, list[int]]:
    """Gives a network the formula's weights; the answer is names and shapes."""
    shapes = {}
    state = {}
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        shapes[name] = list(tensor.shape)
        state[name] = torch.from_numpy(weight(name, tuple(tensor.shape)))
    net.load_state_dict(state, strict=False)
    net.eval()
    return shapes


def tensor_input(name: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy((hashed(name, math.prod(shape)) * scale).astype(np.float32).reshape(shape))


def sample(tensor: torch.Tensor) -> dict:
    """Evenly spread values of an answer."""
    flat = tensor.detach().contiguous().reshape(-1).numpy()
    step = max(1, len(flat) // KEPT)
    return {"shape": list(tensor.shape), "step": step, "values": [float(v) for v in flat[::step]]}


def retinaface(width: int) -> RetinaFace:
    """RetinaFace over a ResNet with two bottlenecks in its first two layers and one in the others."""
    body = ResNet(Bottleneck, [1, 1, 1, 1])
    body.inplanes = 8
    body.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    body.bn1 = nn.BatchNorm2d(8)
    body.layer1 = body._make_layer(Bottleneck, 2, 2)
    body.layer2 = body._make_layer(Bottleneck, 4, 2, stride=2)
    body.layer3 = body._make_layer(Bottleneck, 8, 1, stride=2)
    body.layer4 = body._make_layer(Bottleneck, 16, 1, stride=2)
    net = RetinaFace(device=torch.device("cpu"))
    net.body = IntermediateLayerGetter(body, {"layer2": 1, "layer3": 2, "layer4": 3})
    net.fpn = FPN([16, 32, 64], width)
    net.ssh1, net.ssh2, net.ssh3 = (SSH(width, width) for _ in range(3))
    net.ClassHead = make_class_head(3, width)
    net.BboxHead = make_bbox_head(3, width)
    net.LandmarkHead = make_landmark_head(3, width)
    return net


def retinaface_case(width: int) -> dict:
    net = retinaface(width)
    tensors = fill(net)
    shape = (1, 3, 75, 100)
    x = tensor_input("picture", shape, 100.0)
    boxes, scores, landmarks = net(x)
    return {
        "network": "retinaface",
        "tensors": tensors,
        "input": {"shape": list(shape), "scale": 100.0},
        "outputs": {
            "boxes": sample(boxes),
            "scores": sample(scores),
            "landmarks": sample(landmarks),
        },
    }


def detection_case() -> dict:
    """Boxes, scores and landmarks of the whole detector on a picture, with a low threshold."""
    net = retinaface(68)
    fill(net)
    threshold = 0.62
    picture = formula_picture(100, 75)
    found = net.detect_faces(np.ascontiguousarray(picture[:, :, ::-1]), threshold)
    return {
        "width": 100,
        "height": 75,
        "threshold": threshold,
        "faces": [[float(v) for v in face] for face in found],
    }


def parsenet_case() -> dict:
    net = ParseNet(in_size=32, out_size=32, min_feat_size=8, base_ch=8, parsing_ch=19, res_depth=2, ch_range=[4, 16])
    tensors = fill(net)
    shape = (1, 3, 32, 32)
    logits = net(tensor_input("picture", shape))[0]
    return {
        "network": "parsenet",
        "tensors": tensors,
        "input": {"shape": list(shape), "scale": 1.0},
        "outputs": {"classes": sample(logits.argmax(dim=1).float())},
    }


def gfpgan_case() -> dict:
    net = GFPGAN(
        out_size=64,
        num_style_feat=16,
        channel_multiplier=2,
        fix_decoder=False,
        num_mlp=2,
        input_is_latent=True,
        different_w=True,
        narrow=1 / 64,
        sft_half=True,
    )
    tensors = fill(net)
    shape = (1, 3, 64, 64)
    # The stored noise: the only choice that answers the same twice.
    face = net(tensor_input("picture", shape), return_rgb=False, randomize_noise=False)[0]
    return {
        "network": "gfpgan",
        "tensors": tensors,
        "input": {"shape": list(shape), "scale": 1.0},
        "outputs": {"face": sample(face)},
    }


def codeformer(dim: int, levels: list[int], codebook: int, layers: int) -> CodeFormer:
    """CodeFormer with 32 channels and few levels; its code has the sizes of the published one written in."""
    base = CodeFormer.__bases__[0]
    side = 16 * 2 ** (len(levels) - 1)
    true_init = base.__init__

    def small_init(self: nn.Module, *_args: object, **_kwargs: object) -> None:
        true_init(self, side, 32, levels, "nearest", 2, [16], codebook)

    sizes = [str(16 * 2**n) for n in range(1, len(levels))]
    with mock.patch.object(base, "__init__", small_init):
        net = CodeFormer(
            dim_embd=dim, n_layers=layers, codebook_size=codebook, connect_list=sizes, fix_modules=[]
        )
    block = type(next(iter(net.fuse_convs_dict.values())))
    net.fuse_encoder_block, net.fuse_generator_block = {}, {}
    for n, size in enumerate(sizes, start=1):
        width = 32 * levels[len(levels) - 1 - n]
        net.fuse_convs_dict[size] = block(width, width)
        net.fuse_encoder_block[size] = 2 + 3 * (len(levels) - 1 - n)
        net.fuse_generator_block[size] = 6 + 3 * n
    return net


def codeformer_case(fidelity: float) -> dict:
    net = codeformer(16, [1, 2, 1], 24, 2)
    tensors = fill(net)
    shape = (1, 3, 64, 64)
    face = net(tensor_input("picture", shape), weight=fidelity, adain=True)[0]
    return {
        "network": "codeformer",
        "fidelity": fidelity,
        "tensors": tensors,
        "input": {"shape": list(shape), "scale": 1.0},
        "outputs": {"face": sample(face)},
    }


def formula_picture(width: int, height: int) -> np.ndarray:
    """RGB with smooth slopes and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = hashed("noise", width * height).reshape(height, width)
    base = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return np.clip(base + np.trunc(noise * 20.0)[:, :, None], 0, 255).astype(np.uint8)


LANDMARKS = [
    [[71.0, 60.5], [108.25, 57.0], [90.5, 80.0], [75.0, 100.25], [104.0, 98.0]],
    # At the border, turned, with a mouth corner that is far off.
    [[150.0, 110.0], [170.5, 122.0], [156.0, 130.0], [140.0, 131.5], [180.0, 149.0]],
]


class Detector:
    """Finds the faces that it is told."""

    def __init__(self) -> None:
        self.faces = np.array(
            [[0, 0, 1, 1, 0.99, *np.array(points).ravel()] for points in LANDMARKS], dtype=np.float32
        )

    def detect_faces(self, picture: np.ndarray, threshold: float) -> np.ndarray:
        """The landmarks are on the picture itself; the helper scales them from its 640-pixel copy."""
        assert threshold == 0.97
        self.seen = picture
        found = self.faces.copy()
        found[:, 5:] /= np.float32(150 / 640)
        return found


class Parser(nn.Module):
    """Skin in an ellipse, background around it, the class of necks above."""

    def forward(self, face: torch.Tensor) -> tuple[torch.Tensor]:
        y, x = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
        classes = torch.where((x - 256) ** 2 * 4 + (y - 280) ** 2 * 2 < 360**2, 1, 0)
        classes = torch.where(y < 90, 17, classes)
        return (nn.functional.one_hot(classes, 19).permute(2, 0, 1)[None].float(),)


def face_pass(folder: Path) -> dict:
    """One picture through facexlib's helper with a restorer that turns levels around."""
    detector = Detector()
    with (
        mock.patch.object(helper_module, "init_detection_model", lambda *_a, **_k: detector),
        mock.patch.object(helper_module, "init_parsing_model", lambda **_k: Parser()),
    ):
        helper = helper_module.FaceRestoreHelper(
            1, face_size=512, crop_ratio=(1, 1), use_parse=True, device=torch.device("cpu")
        )
    picture = formula_picture(200, 150)
    helper.read_image(np.ascontiguousarray(picture[:, :, ::-1]))
    helper.get_face_landmarks_5(only_center_face=False, resize=640, eye_dist_threshold=5)
    helper.align_warp_face()
    for face in helper.cropped_faces:
        helper.add_restored_face((255 - face).astype(np.uint8))
    helper.get_inverse_affine(None)
    answer = helper.paste_faces_to_input_image()
    Image.fromarray(np.ascontiguousarray(answer[:, :, ::-1])).save(folder / "pasted.png", optimize=True)
    crop = np.ascontiguousarray(helper.cropped_faces[1][::4, ::4, ::-1])
    Image.fromarray(crop).save(folder / "crop.png", optimize=True)
    seen = np.ascontiguousarray(detector.seen[::5, ::5, ::-1])
    Image.fromarray(seen).save(folder / "seen.png", optimize=True)
    return {
        "landmarks": LANDMARKS,
        "matrices": [matrix.ravel().tolist() for matrix in helper.affine_matrices],
        "inverse": [matrix.ravel().tolist() for matrix in helper.inverse_affine_matrices],
    }


def alignments() -> list[dict]:
    """cv2.estimateAffinePartial2D of landmarks with and without outliers."""
    template = np.array(
        [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
         [313.08905, 371.15118]]
    )  # fmt: skip
    cases = []
    for number in range(24):
        noise = hashed(f"alignment {number}", 16)
        angle, size = noise[0] * 3.0, 0.05 + 2.0 * (noise[1] + 1.0)
        turn = size * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        points = template @ turn.T + noise[2:4] * 300 + noise[4:14].reshape(5, 2) * (number % 6) * 8.0 * size
        points = points.astype(np.float32)
        matrix = cv2.estimateAffinePartial2D(points, template, method=cv2.LMEDS)[0]
        cases.append({"landmarks": points.tolist(), "matrix": matrix.ravel().tolist()})
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="tests/golden/faces")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    made_by = (
        f"scripts/golden_faces.py, torch {torch.__version__}, OpenCV {cv2.__version__}, facexlib 0.3.0, "
        "spandrel 0.4.2, spandrel_extra_arches 0.2.0"
    )
    with torch.no_grad():
        networks = {
            "made_by": made_by,
            "tolerance": 1e-4,
            "cases": [
                retinaface_case(68),
                retinaface_case(16),
                parsenet_case(),
                gfpgan_case(),
                codeformer_case(0.5),
                codeformer_case(0.0),
            ],
        }
        others = {
            "made_by": made_by,
            "detection": detection_case(),
            "pass": face_pass(folder),
            "alignments": alignments(),
        }
    for name, document in (("networks.json", networks), ("faces.json", others)):
        text = json.dumps(document, separators=(",", ":"))
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
