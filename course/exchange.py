"""Two towers in two processes, all of it in one file: halves cross forward, their gradients cross back.

    python course/exchange.py

The network tells the four arms of a spiral apart. Each process holds one tower: half of every layer. B points:

    layer1   reads the points                  [B, 2]         -> [B, 16]
    layer2   reads both halves of layer1       [B, 16] twice  -> [B, 16]
    layer3   reads both halves of layer2       [B, 16] twice  -> [B, 2], logits of two of the four classes
    collect  puts both towers' logits together [B, 2] twice   -> [B, 4], the same in both processes

In the end one process that holds both halves trains the same network in one piece, and the differences are printed.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

HALF, CLASSES, STEPS, RATE, SECONDS = 16, 4, 120, 0.3, 60


class Link:
    """The way to the other tower. Both towers post the same swaps in the same order; there is no other protocol."""

    def __init__(self, tower: int) -> None:
        self.tower = tower

    def post(self, mine: Tensor) -> Callable[[], Tensor]:
        """Sends `mine` on its way. Returns a function that waits for the other tower's tensor."""
        mine = mine.detach().contiguous()
        theirs = torch.empty_like(mine)
        works = [dist.irecv(theirs, 1 - self.tower), dist.isend(mine, 1 - self.tower)]

        def wait(_kept: Tensor = mine) -> Tensor:  # gloo reads `mine` until it has been waited for
            for work in works:
                work.wait()
            return theirs

        return wait


class Finish(torch.autograd.Function):
    """Forward: the other tower's half arrives. Backward: its gradient goes back to where the half came from."""

    @staticmethod
    def forward(ctx, x: Tensor, wait: Callable[[], Tensor], link: Link) -> Tensor:
        ctx.link = link
        return wait()  # x is an argument only so that backward can return a gradient for it

    @staticmethod
    def backward(ctx, grad_peer: Tensor) -> tuple[Tensor, None, None]:
        return ctx.link.post(grad_peer)(), None, None  # autograd ADDS it to what this tower itself asks of x


class ReadBoth(nn.Module):
    """y = own(x) + other(peer): x is this tower's half, peer that of the other tower."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(HALF, units), nn.Linear(HALF, units, bias=False)

    def forward(self, x: Tensor, link: Link) -> Tensor:
        wait = link.post(x)
        y = self.own(x)  # computed while the halves cross
        return y + self.other(Finish.apply(x, wait, link))


class Tower(nn.Module):
    def __init__(self, tower: int) -> None:
        super().__init__()
        torch.manual_seed(tower)  # each tower has weights of its own
        self.layer1, self.layer2, self.layer3 = nn.Linear(2, HALF), ReadBoth(HALF), ReadBoth(CLASSES // 2)

    def forward(self, points: Tensor, link: Link) -> Tensor:
        x = F.relu(self.layer1(points))
        x = F.relu(self.layer2(x, link))
        return collect(self.layer3(x, link), link)


def collect(own: Tensor, link: Link) -> Tensor:
    """The whole logits, tower 0's half first. No gradient crosses, as each process computes the whole loss itself."""
    halves = [own, link.post(own)()]
    return torch.cat(halves if link.tower == 0 else halves[::-1], dim=1)


def draw_spiral() -> tuple[Tensor, Tensor]:
    """200 points [B, 2] of four arms, and the arm of each [B]; whoever calls this gets the same ones."""
    draw = torch.Generator().manual_seed(7)
    radius, labels = torch.rand(200, generator=draw, dtype=torch.float64), torch.arange(200) % CLASSES
    angle = 2.5 * radius + labels * torch.pi / 2 + 0.1 * torch.randn(200, generator=draw, dtype=torch.float64)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


def train(parameters: list[Tensor], compute_logits: Callable[[Tensor], Tensor]) -> dict[str, list[Tensor]]:
    """The loss of each step, the gradients of the first one, and the weights in the end."""
    (points, labels), losses, first = draw_spiral(), [], []
    for _ in range(STEPS):
        losses.append(F.cross_entropy(compute_logits(points), labels))
        grads = torch.autograd.grad(losses[-1], parameters)
        first = first or list(grads)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.data -= RATE * grad
    return {"losses": [x.detach() for x in losses], "first gradients": first, "weights in the end": parameters}


def run_tower(tower: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "")  # this machine alone
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", 2)
    dist.init_process_group("gloo", store=store, rank=tower, world_size=2, timeout=timedelta(seconds=SECONDS))
    network, link = Tower(tower).double(), Link(tower)
    torch.save(train(list(network.parameters()), lambda points: network(points, link)), f"{folder}/{tower}.pt")
    dist.destroy_process_group()


def train_whole() -> dict[str, list[Tensor]]:
    """One process holds both halves: each layer is one matrix, and nothing crosses. Tower 0's parameters first."""
    one, two = (Tower(tower).double() for tower in (0, 1))

    def compute_logits(points: Tensor) -> Tensor:
        x = F.relu(torch.cat([one.layer1(points), two.layer1(points)], dim=1))
        for a, b, then in ((one.layer2, two.layer2, F.relu), (one.layer3, two.layer3, nn.Identity())):
            rows = [torch.cat([a.own.weight, a.other.weight], 1), torch.cat([b.other.weight, b.own.weight], 1)]
            x = then(F.linear(x, torch.cat(rows), torch.cat([a.own.bias, b.own.bias])))
        return x

    return train([*one.parameters(), *two.parameters()], compute_logits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_tower, (folder,), nprocs=2)
        halves = [torch.load(f"{folder}/{tower}.pt") for tower in (0, 1)]
    for step in (*range(0, STEPS, 30), STEPS - 1):
        print(f"step {step:3}  loss {halves[0]['losses'][step]:.4f}  (tower 1: {halves[1]['losses'][step]:.4f})")
    whole, worst = train_whole(), 0.0
    for what, true in whole.items():
        pairs = zip(halves[0][what] + halves[1][what], true * 2 if what == "losses" else true, strict=True)
        off = max((a - b).abs().max().item() for a, b in pairs)
        worst = max(worst, off)
        print(f"{what}: two processes differ from one by up to {off:.1e}")
    sys.exit("error: the towers are not one network" if not worst < 1e-9 else 0)
