"""Muon: momentum whose matrix updates are orthogonalised (Newton-Schulz on the Gram matrix), scaled to Adam's usual step."""

import torch


class Muon(torch.optim.Optimizer):
    """for parameters of two or more dimensions"""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @staticmethod
    def orth(x: torch.Tensor) -> torch.Tensor:
        """orthogonalised wide matrices (k x rows x columns)"""
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-9)
        a = x @ x.mT
        q = eye = torch.eye(a.shape[1], device=x.device)
        for i in range(5):
            p = 3.4445 * eye - 4.7750 * a + 2.0315 * (a @ a)
            q = p @ q
            if i < 4:
                a = p @ a @ p
        return q @ x

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for g in self.param_groups:
            some = [p for p in g["params"] if p.grad is not None]
            for p in some:
                if "m" not in self.state[p]:
                    self.state[p]["m"] = torch.zeros_like(p)
            grads = [p.grad for p in some]
            kept = [self.state[p]["m"] for p in some]
            torch._foreach_mul_(kept, g["momentum"])
            torch._foreach_add_(kept, grads)
            ahead = torch._foreach_add(grads, kept, alpha=g["momentum"])
            # matrices of one shape go through the products together
            alike: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for p, u in zip(some, ahead):
                m = u.reshape(len(u), -1)
                alike.setdefault((min(m.shape), max(m.shape)), []).append((p, m))
            for (rows, columns), pairs in alike.items():
                wide = [m if len(m) == rows else m.T for _, m in pairs]
                o = self.orth(torch.stack(wide)) * (0.2 * columns**0.5 * g["lr"])
                for (p, m), x in zip(pairs, o):
                    p.sub_((x if len(m) == rows else x.T).reshape(p.shape))
