"""Whole training steps (forward, loss, backward, Adam) of fastconv beside PyTorch, and the memory they take.

    python bench/train.py [--peer-python /path/to/a/python/with/torch] [--readme]

Each network is built by `fastconv.models`, written down as a list of layers and built again of torch.nn's. fastconv and
PyTorch, once with contiguous and once with channels_last tensors, each run in a process of their own and take turns
(see turns.py); PyTorch's faster layout counts, and its Adam is the fused one. Every network gets new processes, so that
the peak of their memory, of which what the imported library takes is subtracted, is that network's.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import turns

OURS, TORCH = "fastconv", ("PyTorch contiguous", "PyTorch channels_last")
# name: (builder in fastconv.models, its arguments, pictures in a batch)
JOBS: dict[str, tuple[str, dict[str, Any], int]] = {
    "LeNet, MNIST": ("lenet", {}, 64),
    "CIFAR net, 32x32": ("cifar_net", {}, 64),
    "VGG-16 body, 32x32": ("vgg16", {"input_shape": (32, 32, 3), "classes": 10, "hidden": 0}, 64),
    "VGG-16, 224x224": ("vgg16", {}, 4),
    "ResNet-50, 224x224": ("resnet50", {}, 4),
    "MobileNet, 224x224": ("mobilenet_v1", {}, 4),
}


def described(layer: Any) -> Any:
    """A layer of fastconv in plain data: its class, the numbers that PyTorch's asks for, and the layers inside."""
    from fastconv import layers as L

    kind = next(c for c in (L.Sequential, L.Residual, L.Conv2D, L.MaxPool2D, type(layer)) if isinstance(layer, c))
    if kind is L.Sequential:
        return ["Sequential", [described(part) for part in layer.layers]]
    if kind is L.Residual:
        return ["Residual", described(layer.body), described(layer.shortcut)]
    if kind is L.Conv2D:
        w, g = layer.geometry.window, layer.geometry
        return ["Conv2D", g.D1, g.K, w.F, w.S, [before for before, _ in w.pads], g.groups, layer.bias]
    if kind is L.MaxPool2D:
        w = layer.geometry.window
        return ["MaxPool2D", w.F, w.S, [before for before, _ in w.pads]]
    if kind is L.Dense:
        return ["Dense", layer.geometry.D1, layer.K]
    if kind is L.BatchNorm:
        return ["BatchNorm", layer.input_shape[-1]]
    return [kind.__name__, *([layer.p] if kind is L.Dropout else [])]


def batch(shape: list[int], classes: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((N, *shape), np.float32), rng.integers(0, classes, N)


class Fastconv(turns.Library):
    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import fastconv

        fastconv.set_num_threads(threads)
        self.fc, self.version = fastconv, f"fastconv {fastconv.__version__} ({fastconv.isa()})"

    def model(self, name: str, settings: dict[str, Any], N: int, plan: Any) -> int:
        """Build the network; the call is one step. Returns the number of parameters."""
        from fastconv import losses, models, optim

        net = getattr(models, name)(**settings)
        x, labels = batch(net.input_shape, net.output_shape[0], N)
        if net.layout == "NCHW":
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        adam = optim.Adam([net.flat_params], lr=1e-4)

        def step() -> float:
            loss, gradient = losses.softmax_cross_entropy(net.forward(x, training=True), labels)
            net.backward(gradient)
            adam.step([net.flat_grads])
            return loss

        self.calls = {OURS: step}
        return net.flat_params.size


class Torch(turns.Library):
    def __init__(self, threads: int, memory: str) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch, self.version = torch, f"PyTorch {torch.__version__}"
        self.name, self.memory = f"PyTorch {memory}", memory + "_format" * (memory == "contiguous")

    def model(self, name: str, settings: dict[str, Any], N: int, plan: Any) -> int:
        """As Fastconv.model, from the plan."""
        torch, memory = self.torch, getattr(self.torch, self.memory)
        shape, classes, layers = plan
        net = self.built(layers).to(memory_format=memory).train()
        x, labels = map(torch.from_numpy, batch(shape, classes, N))
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory)
        adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

        def step() -> float:
            adam.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            adam.step()
            return loss.item()

        self.calls = {self.name: step}
        return sum(p.numel() for p in net.parameters())

    def built(self, plan: Any) -> Any:
        nn, (kind, *numbers) = self.torch.nn, plan
        if kind == "Residual":
            return self.residual(*map(self.built, numbers))
        make: dict[str, Callable[..., Any]] = {
            "Sequential": lambda parts: nn.Sequential(*map(self.built, parts)),
            "Conv2D": lambda D, K, F, S, P, groups, bias: nn.Conv2d(D, K, F, S, P, groups=groups, bias=bias),
            "Dense": nn.Linear, "BatchNorm": nn.BatchNorm2d, "MaxPool2D": nn.MaxPool2d, "Flatten": nn.Flatten,
            "GlobalAvgPool2D": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "ReLU": lambda: nn.ReLU(inplace=True), "Dropout": nn.Dropout,
        }  # fmt: skip
        return make[kind](*numbers)

    def residual(self, body: Any, shortcut: Any) -> Any:
        class Residual(self.torch.nn.Module):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.body, self.shortcut = body, shortcut

            def forward(self, x: Any) -> Any:
                return self.body(x) + self.shortcut(x)

        return Residual()


LIBRARIES: dict[str, Callable[[int], turns.Library]] = {
    OURS: Fastconv,
    TORCH[0]: lambda threads: Torch(threads, "contiguous"),
    TORCH[1]: lambda threads: Torch(threads, "channels_last"),
}


def plan_of(builder: str, settings: dict[str, Any]) -> Any:
    """Input shape, classes and layers of a network, for PyTorch."""
    from fastconv import models

    net = getattr(models, builder)(**settings)
    return [net.input_shape, net.output_shape[0], described(net)]


def race(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network in new processes."""
    builder, settings, N = JOBS[name]
    plan, settings = plan_of(builder, settings), settings | {"layout": args.layout}
    workers = turns.start(list(LIBRARIES), dict.fromkeys(TORCH, args.peer_python), args.threads)
    resting = {key: worker.ask("peak") for key, worker in workers.items()}
    sizes = {worker.ask("model", builder, settings, N, plan) for worker in workers.values()}
    if len(sizes) != 1:
        raise SystemExit(f"{name}: the networks differ, {sizes} parameters")
    measured = turns.rounds(list(workers.values()), args.seconds, args.rounds)
    memory = {key: worker.ask("peak") - resting[key] for key, worker in workers.items()}
    versions = [worker.versions for worker in workers.values()]
    for worker in workers.values():
        worker.close()
    best = turns.best(measured)
    rivals = [way for way in TORCH if way in best]
    row = {"name": name, "N": N, "parameters": sizes.pop(), "best": best, "memory": memory, "versions": versions,
           "ratio": turns.ratio(measured, OURS, rivals)}  # fmt: skip
    times = "  ".join(f"{way} {s * 1e3:.1f} ms, {memory[way] / 1e6:.0f} MB" for way, s in best.items())
    print(f"{name:20s} N={N:<3d} {row['ratio']:5.2f}x  {times}", flush=True)
    return row


def written(rows: list[dict[str, Any]]) -> str:
    from report import duration, table

    head = ["one step: forward, loss, backward, Adam", "N", "fastconv", "PyTorch", "times as fast", "memory, fastconv",
            "memory, PyTorch"]  # fmt: skip
    body = []
    for row in rows:
        fastest = min((way for way in TORCH if way in row["best"]), key=row["best"].__getitem__, default=None)
        theirs = [duration(row["best"][fastest]), f"**{row['ratio']:.2f}x**"] if fastest else ["", ""]
        megabytes = [f"{row['memory'][way] / 1e6:,.0f} MB" if way else "" for way in (OURS, fastest)]
        body.append([row["name"], str(row["N"]), duration(row["best"][OURS]), *theirs, *megabytes])
    return table(head, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer-python", default=sys.executable, help="a Python that has torch")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=0.5, help="how long steps are repeated in a round")
    add("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="fastconv's")
    add("--match", default="", help="only networks with this text in their name")
    add("--json", type=Path, help="write every measurement there")
    add("--readme", action="store_true", help="write the table into README.md")
    add("--serve", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        turns.serve(LIBRARIES[args.serve], args.threads)
        return
    from report import README, machine, write_section

    rows = [race(name, args) for name in JOBS if args.match in name]
    versions = ", ".join(dict.fromkeys(v for row in rows for v in row["versions"]))
    who = f"{machine()}; {args.threads} threads, float32, {args.layout}; {versions}."
    print(f"\n{who}\n\n{written(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.readme:
        write_section(README, "train", f"{who}\n\n{written(rows)}")


if __name__ == "__main__":
    main()
