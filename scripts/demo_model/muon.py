"""Muon: momentum whose matrix updates are orthogonalised (Newton-Schulz on the Gram matrix), scaled to Adam's usual step."""

import torch


class Muon(torch.optim.Optimizer):
    """for parameters of two or more dimensions"""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @staticmethod
    def orth(g: torch.Tensor) -> torch.Tensor:
        tall = g.shape[0] > g.shape[1]
        x = g.T if tall else g
        x = x / (x.norm() + 1e-9)
        a = x @ x.T
        q = eye = torch.eye(len(a))
        for i in range(5):
            p = 3.4445 * eye - 4.7750 * a + 2.0315 * (a @ a)
            q = p @ q
            if i < 4:
                a = p @ a @ p
        x = q @ x
        return x.T if tall else x

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                st = self.state[p]
                if "m" not in st:
                    st["m"] = torch.zeros_like(p)
                st["m"].mul_(g["momentum"]).add_(p.grad)
                u = p.grad + g["momentum"] * st["m"]
                m = u.reshape(u.shape[0], -1)
                o = self.orth(m) * (0.2 * max(m.shape) ** 0.5)
                p.sub_(o.reshape(u.shape), alpha=g["lr"])
