# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "numpy==2.3.5",
#     "torch==2.9.1",
# ]
# ///
"""Writes tests/golden/pickles: small files that torch saved, hostile ones, and what is in them.

`pickles.json` lists for each file its tensors (element type, shape, values; or the file that has the
same), or a part of the sentence with which it must be refused. Nothing here depends on a seed or the
clock; in the older format torch names storages by their addresses, which differ from run to run.
"""

import argparse
import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch

STAMP = (1980, 1, 1, 0, 0, 0)


def tensors() -> OrderedDict[str, torch.Tensor]:
    """One tensor of every element type, views, another order of axes, an empty and a scalar one."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8 - 1
    parts: OrderedDict[str, torch.Tensor] = OrderedDict()
    parts["f32"] = base.clone()
    parts["f64"] = base.to(torch.float64)
    parts["f16"] = base.to(torch.float16)
    parts["bf16"] = base.to(torch.bfloat16)
    parts["i64"] = torch.tensor([1, -2, 3])
    parts["i32"] = torch.tensor([4, -5], dtype=torch.int32)
    parts["i16"] = torch.tensor([6, -7], dtype=torch.int16)
    parts["i8"] = torch.tensor([8, -9], dtype=torch.int8)
    parts["u8"] = torch.tensor([250, 7], dtype=torch.uint8)
    parts["bool"] = torch.tensor([True, False, True])
    parts["rows"] = base[:, 1:]
    parts["row"] = base[1, 2]
    parts["transposed"] = base.permute(2, 0, 1)
    parts["channels_last"] = torch.arange(16.0).reshape(1, 2, 2, 4).contiguous(
        memory_format=torch.channels_last
    )
    parts["empty"] = torch.zeros(0, 3)
    parts["scalar"] = torch.tensor(2.5)
    parts["parameter"] = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
    return parts


def listed(parts: dict[str, torch.Tensor]) -> dict[str, object]:
    entries = {}
    for name, tensor in parts.items():
        plain = tensor.detach()
        entries[name] = {
            "type": str(plain.dtype).removeprefix("torch."),
            "shape": list(plain.shape),
            "values": plain.to(torch.float32).reshape(-1).tolist(),
        }
    return entries


def save(value: object, path: Path, *, zipped: bool = True, protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)


def repack(source: Path, target: Path) -> None:
    """The same archive, deflated."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name, STAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(info, old.read(name))


def archive(path: Path, data: bytes, members: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as new:
        new.writestr(zipfile.ZipInfo("archive/data.pkl", STAMP), data)
        for name, content in (members or {}).items():
            new.writestr(zipfile.ZipInfo(f"archive/{name}", STAMP), content)


class Command:
    """Would start a program in a reader that runs pickles."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/a_pickle_was_run",)


class Evaluation:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


class Trainer:
    """Stands for what a trainer leaves in a checkpoint."""

    def __init__(self) -> None:
        self.best = 0.5


def name_trainer() -> None:
    """Has `Trainer` pickled under the name of Lightning's class."""
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    Trainer.__module__ = module.__name__
    Trainer.__qualname__ = Trainer.__name__ = "ModelCheckpoint"
    module.ModelCheckpoint = Trainer
    sys.modules["pytorch_lightning"] = type(sys)("pytorch_lightning")
    sys.modules["pytorch_lightning.callbacks"] = type(sys)("pytorch_lightning.callbacks")
    sys.modules[module.__name__] = module


def with_trainer(parts: dict[str, torch.Tensor]) -> object:
    return {
        "epoch": 3,
        "global_step": 470000,
        "callbacks": {Trainer: Trainer()},
        "state_dict": parts,
    }


def half_weights() -> OrderedDict[str, torch.Tensor]:
    """A state dictionary in half precision whose tensors share storages, as fine-tuned checkpoints have them."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 16 - 0.5
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        whole = base.to(dtype)
        # Three projections that were split from one matrix, and the matrix.
        for part, rows in zip("qkv", whole.split([1, 1, 2])):
            weights[f"{name}.to_{part}.weight"] = rows
        weights[f"{name}.whole"] = whole
        weights[f"{name}.transposed"] = whole.t()
        weights[f"{name}.every_second"] = whole[1:, ::2]
        weights[f"{name}.column"] = whole[:, 3]
        weights[f"{name}.parameter"] = torch.nn.Parameter(whole.clone())
        tied = torch.nn.Parameter(whole[2].clone(), requires_grad=False)
        weights[f"{name}.tied"] = weights[f"{name}.tied_again"] = tied
        told = torch.nn.Parameter(whole[0, :2].clone())
        told.note = "an attribute of the parameter"
        weights[f"{name}.with_attribute"] = told
        # One element a row, repeated by a stride of 0.
        weights[f"{name}.expanded"] = whole[:, :1].expand(4, 5)
    weights["position_ids"] = torch.arange(5).expand((1, -1))
    weights._metadata = OrderedDict({"": {"version": 1}})
    return weights


def training_state(weights: dict[str, torch.Tensor]) -> dict[str, object]:
    """What PyTorch Lightning saves in the middle of a training: the weights and much beside them."""
    moments = defaultdict(dict)
    moments[0] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, dtype=torch.float16)}
    return {
        "epoch": np.int64(7),
        "global_step": 840000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": weights,
        "callbacks": {
            Trainer: {
                "monitor": "val/loss_simple_ema",
                "best_model_score": torch.tensor(0.25),
                "best_model_path": "",
                "current_score": np.float64(0.375),
                "kth_best_model": np.str_("last"),
                "history": np.arange(3, dtype=np.float32),
                "best_k": {"a.ckpt": np.float32(0.5)},
            },
            Trainer(): None,
        },
        "optimizer_states": [
            {"state": moments, "param_groups": [{"lr": np.float64(1e-4), "betas": (0.9, 0.999), "params": [0]}]}
        ],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 7, "_get_lr_called_within_step": False}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"timesteps": 1000, "linear_start": 0.00085, "big": 2**80, "none": None, "keys": {1, 2}},
        "size": torch.Size([4, 6]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
    }


def with_old_numpy(source: Path, target: Path) -> None:
    """The same file as numpy 1 would have it: the module that its pickles name got an underscore in numpy 2."""
    saved = source.read_bytes()
    assert b"cnumpy._core.multiarray\n" in saved
    target.write_bytes(saved.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name_trainer()
    parts = tensors()
    whole = listed(parts)
    good: dict[str, object] = {}
    save(parts, folder / "zip.pt")
    save(parts, folder / "sequence.pt", zipped=False)
    repack(folder / "zip.pt", folder / "deflated.pt")
    for name in ("zip.pt", "sequence.pt", "deflated.pt"):
        good[name] = whole
    halves = half_weights()
    state = training_state(halves)
    save(state, folder / "training.ckpt")
    save(state, folder / "training_sequence.ckpt", zipped=False)
    with_old_numpy(folder / "training_sequence.ckpt", folder / "training_old_numpy.ckpt")
    save(state, folder / "training_protocol_5.ckpt", protocol=5)
    save(state, folder / "training_sequence_protocol_4.ckpt", zipped=False, protocol=4)
    good["training.ckpt"] = listed(halves)
    for name in ("sequence", "old_numpy", "protocol_5", "sequence_protocol_4"):
        good[f"training_{name}.ckpt"] = "training.ckpt"
    few = {"a.weight": torch.tensor([[1.0, 2.0]]), "a.bias": torch.tensor([3.0]).half()}
    save(with_trainer(few), folder / "trainer.ckpt")
    save({"params_ema": few, "params": {"a.weight": torch.zeros(1)}}, folder / "wrapped.pth")
    module = torch.nn.Linear(2, 1)
    module.load_state_dict({"weight": few["a.weight"], "bias": few["a.bias"].float()})
    save(module.state_dict(), folder / "state_dict.pth")
    good["trainer.ckpt"] = good["wrapped.pth"] = listed(few)
    good["state_dict.pth"] = listed(module.state_dict())
    embedding = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.tensor([[0.25, -0.5], [1.0, 2.0]])},
        "name": "tiny",
        "step": 499,
        "sd_checkpoint": None,
    }
    save(embedding, folder / "embedding.pt")

    bad: dict[str, str] = {}
    save({"a": torch.zeros(2), "b": Command()}, folder / "command.pt")
    bad["command.pt"] = f"{os.system.__module__}.system"
    save({"a": torch.zeros(2), "b": Evaluation()}, folder / "evaluation.pt", zipped=False)
    bad["evaluation.pt"] = "builtins.eval"
    archive(folder / "global.pt", b"\x80\x02csubprocess\nPopen\nq\x00.")
    bad["global.pt"] = "subprocess.Popen"
    archive(folder / "instance.pt", b"(S'x'\nios\nsystem\n.")
    bad["instance.pt"] = "STRING"
    archive(folder / "missing.pt", storage_pickle("0", 2, [2], [1]))
    bad["missing.pt"] = "no member archive/data/0"
    four = {"data/0": b"\0" * 16}
    archive(folder / "outside.pt", storage_pickle("0", 4, [5], [1]), four)
    bad["outside.pt"] = "outside its storage"
    archive(folder / "strides.pt", storage_pickle("0", 4, [2, 2], [2**40, 1]), four)
    bad["strides.pt"] = "outside its storage"
    archive(folder / "repeats.pt", storage_pickle("0", 4, [2**40, 4], [0, 1]), four)
    bad["repeats.pt"] = "more than"
    archive(folder / "claims.pt", storage_pickle("0", 2**50, [4], [1]), four)
    bad["claims.pt"] = "ends early"
    archive(folder / "negative.pt", storage_pickle("0", 4, [-1], [1]), four)
    bad["negative.pt"] = "no whole number"
    big = {"byteorder": b"big", **four}
    archive(folder / "big_endian.pt", storage_pickle("0", 4, [4], [1]), big)
    bad["big_endian.pt"] = "big-endian"
    archive(folder / "script.pt", b"\x80\x02}.", {"constants.pkl": b"\x80\x02).", "code/m.py": b""})
    bad["script.pt"] = "TorchScript"
    archive(folder / "list.pt", b"\x80\x02].")
    bad["list.pt"] = "no named tensors"
    (folder / "text.pt").write_bytes(b"<!DOCTYPE html><p>Not found</p>")
    bad["text.pt"] = "no file that torch saved"

    document = {
        "made_by": f"scripts/golden_pickles.py, torch {torch.__version__}",
        "files": good,
        "refused": bad,
    }
    (folder / "pickles.json").write_text(json.dumps(document, indent=1) + "\n")


def storage_pickle(key: str, count: int, shape: list[int], strides: list[int]) -> bytes:
    """`{"a": tensor}` with claims of any kind."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Place):
                return ("storage", torch.FloatStorage, key, "cpu", count)
            return None

    class Place:
        pass

    class Claim:
        def __reduce__(self) -> tuple[object, ...]:
            sizes = (Place(), 0, tuple(shape), tuple(strides), False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, sizes

    out = io.BytesIO()
    Writer(out, 2).dump({"a": Claim()})
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests/golden/pickles")
    write(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
