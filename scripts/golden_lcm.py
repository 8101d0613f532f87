# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "numpy==1.26.4",
#     "torch==2.1.2",
# ]
# ///
"""Writes tests/golden/lcm_timesteps.json: the timesteps of the LCM sampler for 1 to 50 steps.

Timesteps from 999 down to 19 in equal strides, each turned into a sigma of the 50-entry table by
interpolating its logarithm, and each sigma back into the timestep of the nearest entry. Odd numbers
of steps come to lie half way between two entries; torch 2.1.2's rounding on a CPU decides.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

STRIDE = 20


def alphas_cumprod() -> torch.Tensor:
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0).float()


def timesteps(log_sigmas: torch.Tensor, count: int) -> list[int]:
    last = len(log_sigmas) - 1
    places = ((torch.linspace(999, STRIDE - 1, count) - (STRIDE - 1)) / STRIDE).clamp(0, last)
    low, high, weight = places.floor().long(), places.ceil().long(), places.frac()
    sigmas = ((1 - weight) * log_sigmas[low] + weight * log_sigmas[high]).exp()
    nearest = (sigmas.log() - log_sigmas[:, None]).abs().argmin(dim=0)
    return (nearest * STRIDE + STRIDE - 1).tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests/golden/lcm_timesteps.json")
    path = parser.parse_args().out
    if torch.__version__.split("+")[0] != "2.1.2":
        print(f"this needs torch 2.1.2, not {torch.__version__}", file=sys.stderr)
        return 1
    kept = alphas_cumprod()[STRIDE - 1 :: STRIDE]
    log_sigmas = (((1 - kept) / kept) ** 0.5).log()
    lines = ",\n".join(f'"{n}": {json.dumps(timesteps(log_sigmas, n))}' for n in range(1, 51))
    made_by = f"scripts/golden_lcm.py, torch {torch.__version__}"
    path.write_text(f'{{\n"made_by": "{made_by}",\n"timesteps": {{\n{lines}\n}}\n}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
