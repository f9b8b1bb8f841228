"""fastconv beside PyTorch, ONNX Runtime and NumPy: the convolutions of known networks, and optimizer steps.

    python bench/peers.py [--peer-python /path/to/a/python/with/torch] [--readme]

Each library runs in a process of its own, in turns with the others (see turns.py). Each different convolution of
VGG-16, ResNet-50, MobileNet and LeNet is timed forward and for both gradients, but for the gradient by the picture that
a network's first layer sees, which nobody needs. PyTorch is timed on contiguous and on channels_last tensors and its
faster one counts, layer by layer; ONNX Runtime runs forward only and packs its weights beforehand, which nobody who
trains can. All get the same numbers, and their results are compared. PyTorch's optimizers are timed fused, foreach and
plain, and the fastest counts.

Needs the extra `peers`, or a Python that has torch, onnx and onnxruntime given by --peer-python.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import turns

DIRECTIONS = ("forward", "grad_x", "grad_w")
TORCH = ("PyTorch contiguous", "PyTorch channels_last")
RIVALS = {"PyTorch": TORCH, "ONNX Runtime": ("ONNX Runtime",), "NumPy": ("NumPy",)}
# name: (class and arguments here, class and arguments in PyTorch, bytes read and written for a float32 parameter)
OPTIMIZERS: dict[str, tuple[str, dict, str, dict, int]] = {
    "SGD": ("SGD", {}, "SGD", {}, 12),
    "Momentum": ("Momentum", {"momentum": 0.9}, "SGD", {"momentum": 0.9}, 20),
    "Nesterov": ("Nesterov", {"momentum": 0.9}, "SGD", {"momentum": 0.9, "nesterov": True}, 20),
    "AdaGrad": ("AdaGrad", {}, "Adagrad", {}, 20),
    "RMSProp": ("RMSProp", {"rho": 0.9}, "RMSprop", {"alpha": 0.9}, 20),
    "RMSProp, momentum": ("RMSProp", {"momentum": 0.9}, "RMSprop", {"alpha": 0.9, "momentum": 0.9}, 28),
    "Adam": ("Adam", {}, "Adam", {}, 28),
    "AdamW": ("AdamW", {"weight_decay": 1e-2}, "AdamW", {"weight_decay": 1e-2}, 28),
}


# ------------------------------------------------------------------------------------------------------------- jobs
def convolutions(layer: Any) -> Iterator[Any]:
    """The convolutional layers of a model, in order."""
    from fastconv import layers

    if isinstance(layer, layers.Sequential):
        for part in layer.layers:
            yield from convolutions(part)
    elif isinstance(layer, layers.Residual):
        yield from convolutions(layer.body)
        yield from convolutions(layer.shortcut)
    elif isinstance(layer, layers.Conv2D):
        yield layer


def networks() -> dict[str, tuple[Any, int]]:
    """Each network, and the batch it is given."""
    from fastconv import models

    return {
        "VGG-16": (models.vgg16(hidden=0), 4), "ResNet-50": (models.resnet50(), 4),
        "MobileNet": (models.mobilenet_v1(), 8), "LeNet": (models.lenet(), 64),
    }  # fmt: skip


def layer_jobs() -> list[dict[str, Any]]:
    """Each different convolution of each network as plain numbers, with how often it occurs."""
    jobs = []
    for network, (model, N) in networks().items():
        found: dict[Any, int] = {}
        for layer in convolutions(model):
            found[layer.geometry] = found.get(layer.geometry, 0) + 1
        for i, (g, count) in enumerate(found.items()):
            w = g.window
            P = [before for before, _ in w.pads]
            name = f"{g.H1}x{g.W1}x{g.D1} {w.F[0]}x{w.F[1]} S={w.S[0]} {'depthwise' if g.groups > 1 else g.K}"
            jobs.append(dict(
                network=network, name=name, count=count, first=not i, N=N, H1=g.H1, W1=g.W1, D1=g.D1, K=g.K,
                H2=g.H2, W2=g.W2, F=w.F, S=w.S, P=P, groups=g.groups, gflop=N * g.flops / 1e9,
            ))  # fmt: skip
    return jobs


def parameter_lists() -> dict[str, list[list[int]]]:
    """Shapes of the parameters that an optimizer is given."""
    shapes = {name: [list(p.shape) for p in model.params] for name, (model, _) in networks().items()}
    return {"one array of 2^24": [[1 << 24]], "ResNet-50": shapes["ResNet-50"], "LeNet": shapes["LeNet"],
            "1,000 arrays of 1,000": [[1000]] * 1000}  # fmt: skip


def arrays(job: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """x, w, b and dy in PyTorch's order of axes, the same numbers in every process."""
    rng = np.random.default_rng(2)
    D, (Fh, Fw) = job["D1"] // job["groups"], job["F"]
    x = rng.standard_normal((job["N"], job["D1"], job["H1"], job["W1"]), np.float32)
    w = rng.standard_normal((job["K"], D, Fh, Fw), np.float32) / np.float32(math.sqrt(D * Fh * Fw))
    dy = rng.standard_normal((job["N"], job["K"], job["H2"], job["W2"]), np.float32)
    return x, w, rng.standard_normal(job["K"], np.float32), dy


def last(a: np.ndarray) -> np.ndarray:
    """A volume with its depth last."""
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1))


def probe(result: np.ndarray) -> list[float]:
    """The result, in PyTorch's order of axes, at a hundred places."""
    flat = np.ascontiguousarray(result).reshape(-1)
    return flat[np.random.default_rng(3).integers(0, flat.size, 100)].tolist()


# -------------------------------------------------------------------------------------------------------- libraries
class NHWC(turns.Library):
    """A library with fastconv's functions, which work on volumes with their depth last."""

    name = "NumPy"
    layouts: tuple[str, ...] = ("NHWC",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from fastconv import reference

        self.functions, self.version = reference, f"NumPy {np.__version__}"

    def convolution(self, job: dict[str, Any], direction: str) -> dict[str, list[float]]:
        x, w, b, dy = arrays(job)
        self.calls, seen = {}, {}
        for layout in self.layouts:
            name, nhwc = self.name + (f" {layout}" if len(self.layouts) > 1 else ""), layout == "NHWC"
            how = {"S": tuple(job["S"]), "P": tuple(job["P"]), "groups": job["groups"], "layout": layout}
            a, filters, d = (last(x), np.ascontiguousarray(w.transpose(2, 3, 1, 0)), last(dy)) if nhwc else (x, w, dy)
            self.calls[name] = self.call(direction, a, filters, b, d, how)
            y = self.calls[name]()
            seen[name] = probe(y if not nhwc else y.transpose((3, 2, 0, 1) if direction == "grad_w" else (0, 3, 1, 2)))
        return seen

    def call(self, direction: str, x: Any, w: Any, b: Any, dy: Any, how: dict[str, Any]) -> Callable[[], np.ndarray]:
        f = self.functions
        return {
            "forward": lambda: f.conv2d(x, w, b, **how),
            "grad_x": lambda: f.conv2d_grad_x(dy, w, x.shape, **how),
            "grad_w": lambda: f.conv2d_grad_w(dy, x, w.shape, **how),
        }[direction]


class Fastconv(NHWC):
    name = "fastconv"
    layouts = ("NHWC", "NCHW")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import fastconv

        fastconv.set_num_threads(threads)
        self.functions, self.version = fastconv, f"fastconv {fastconv.__version__} ({fastconv.isa()})"

    def optimizer(self, name: str, shapes: list[list[int]]) -> None:
        from fastconv import optim

        rng = np.random.default_rng(2)
        params, grads = ([rng.standard_normal(s, np.float32) for s in shapes] for _ in range(2))
        kind, settings, *_ = OPTIMIZERS[name]
        opt = getattr(optim, kind)(params, lr=1e-3, **settings)
        self.calls = {"fastconv": lambda: opt.step(grads)}


class Torch(turns.Library):
    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch, self.version = torch, f"PyTorch {torch.__version__}"

    def convolution(self, job: dict[str, Any], direction: str) -> dict[str, list[float]]:
        self.calls, seen = {}, {}
        formats = self.torch.contiguous_format, self.torch.channels_last
        for name, memory in zip(TORCH, formats, strict=True):
            tensors = [self.torch.from_numpy(a) for a in arrays(job)]
            tensors = [t.contiguous(memory_format=memory) if t.ndim == 4 else t for t in tensors]
            self.calls[name] = self.torch.inference_mode()(self.call(direction, *tensors, job))
            seen[name] = probe(self.calls[name]().numpy())
        return seen

    def call(self, direction: str, x: Any, w: Any, b: Any, dy: Any, job: dict[str, Any]) -> Callable[[], Any]:
        S, P, groups, aten = job["S"], job["P"], job["groups"], self.torch.ops.aten
        if direction == "forward":
            return lambda: self.torch.nn.functional.conv2d(x, w, b, S, P, groups=groups)
        which = DIRECTIONS.index(direction) - 1
        wanted = [which == 0, which == 1, False]
        return lambda: aten.convolution_backward(dy, x, w, None, S, P, [1, 1], False, [0, 0], groups, wanted)[which]

    def optimizer(self, name: str, shapes: list[list[int]]) -> None:
        self.calls = {}
        _, _, kind, settings, _ = OPTIMIZERS[name]
        for way in ("fused", "foreach", "plain"):
            params = [self.torch.randn(s, requires_grad=True) for s in shapes]
            for p in params:
                p.grad = self.torch.randn_like(p)
            chosen = {"foreach": False} if way == "plain" else {way: True}
            try:
                opt = getattr(self.torch.optim, kind)(params, lr=1e-3, **settings, **chosen)
                opt.step()
            except (TypeError, RuntimeError):  # there is no fused RMSprop
                continue
            self.calls[f"PyTorch {way}"] = opt.step


class Onnx(turns.Library):
    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import onnx
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.onnx, self.runtime, self.version = onnx, onnxruntime, f"ONNX Runtime {onnxruntime.__version__}"

    def convolution(self, job: dict[str, Any], direction: str) -> dict[str, list[float]]:
        self.calls = {}
        if direction != "forward":
            return {}
        x, w, b, dy = arrays(job)
        make, weights = self.onnx.helper, self.onnx.numpy_helper.from_array
        node = make.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=job["F"], strides=job["S"],
                              pads=job["P"] * 2, group=job["groups"])  # fmt: skip
        ends = [make.make_tensor_value_info(n, self.onnx.TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("y", dy))]
        graph = make.make_graph([node], "convolution", ends[:1], ends[1:], [weights(w, "w"), weights(b, "b")])
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.calls["ONNX Runtime"] = lambda: session.run(None, {"x": x})
        return {"ONNX Runtime": probe(session.run(None, {"x": x})[0])}


LIBRARIES = {"fastconv": Fastconv, "PyTorch": Torch, "ONNX Runtime": Onnx, "NumPy": NHWC}


# --------------------------------------------------------------------------------------------------------- the race
def disagreement(probes: dict[str, list[float]]) -> float:
    """The largest difference of any result from PyTorch's, over the root of its mean square."""
    reference = np.array(probes.get(TORCH[0], probes["fastconv NHWC"]))
    rms = math.sqrt(float(np.mean(reference**2))) or 1.0
    return max(float(np.abs(np.array(p) - reference).max()) / rms for p in probes.values())


def race_layers(workers: dict[str, turns.Worker], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every layer in every direction; a line is printed for each."""
    done = []
    for job in layer_jobs():
        for direction in DIRECTIONS:
            label = f"{job['network']} {job['name']} {direction}"
            if (direction == "grad_x" and job["first"]) or args.match not in label:
                continue
            probes: dict[str, list[float]] = {}
            for worker in workers.values():
                probes |= worker.ask("convolution", job, direction)
            measured = turns.rounds(list(workers.values()), args.seconds, args.rounds, seldom=("NumPy",))
            row = job | {"direction": direction, "error": disagreement(probes), "best": turns.best(measured)}
            row["ratio"] = {
                f"{ours} {them}": turns.ratio(measured, ours, names)
                for ours in ("fastconv NHWC", "fastconv NCHW")
                for them, names in RIVALS.items() if any(n in row["best"] for n in names)
            }
            done.append(row)
            print(f"{label:52s} " + "  ".join(f"{n} {s * 1e3:.2f} ms" for n, s in row["best"].items())
                  + f"  differs by {row['error']:.0e}", flush=True)  # fmt: skip
    return done


def race_optimizers(workers: dict[str, turns.Worker], args: argparse.Namespace) -> list[dict[str, Any]]:
    pair = [workers[name] for name in ("fastconv", "PyTorch") if name in workers]
    done = []
    for which, shapes in parameter_lists().items():
        for name in OPTIMIZERS:
            if args.match not in f"{which} {name}":
                continue
            for worker in pair:
                worker.ask("optimizer", name, shapes)
            measured = turns.rounds(pair, args.seconds, args.rounds)
            fastest = turns.best(measured)
            moved = OPTIMIZERS[name][4] * sum(map(math.prod, shapes))
            rival = turns.ratio(measured, "fastconv", [n for n in fastest if n != "fastconv"])
            row = {"list": which, "optimizer": name, "best": fastest, "ratio": rival, "bytes": moved}
            done.append(row)
            times = "  ".join(f"{n} {s * 1e3:.3f} ms {moved / s / 1e9:.0f} GB/s" for n, s in fastest.items())
            print(f"{which:24s} {name:18s} {rival:6.2f}x  {times}", flush=True)
    return done


# ------------------------------------------------------------------------------------------------------- the report
def totals(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """(network, direction) -> library -> seconds for all convolutions of one picture."""
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        ways = {"fastconv NHWC": ("fastconv NHWC",), "fastconv NCHW": ("fastconv NCHW",), **RIVALS}
        total = sums.setdefault((row["network"], row["direction"]), {})
        for library, names in ways.items():
            seconds = min((row["best"][n] for n in names if n in row["best"]), default=None)
            if seconds is not None:
                total[library] = total.get(library, 0.0) + row["count"] * seconds / row["N"]
    return sums


def layer_tables(rows: list[dict[str, Any]]) -> str:
    from report import duration, geometric_mean, table

    rivals = [name for name in RIVALS if any(f"fastconv NHWC {name}" in row["ratio"] for row in rows)]
    head = ["all convolutions of one picture", "fastconv NHWC", "NCHW", *(f"faster than {name}" for name in rivals)]
    body = []
    for (network, direction), total in totals(rows).items():
        ours = min(total["fastconv NHWC"], total["fastconv NCHW"])
        beaten = [f"**{total[name] / ours:.2f}x**" if name in total else "" for name in rivals]
        times = [duration(total[f"fastconv {layout}"]) for layout in ("NHWC", "NCHW")]
        body.append([f"{network}, {direction}", *times, *beaten])
    lines = []
    for name in rivals:
        means = [
            geometric_mean(row["ratio"][key] for row in rows if (key := f"fastconv {layout} {name}") in row["ratio"])
            for layout in ("NHWC", "NCHW")
        ]
        lines.append(f"{name} {means[0]:.2f} (NHWC) and {means[1]:.2f} (NCHW)")
    worst = max(row["error"] for row in rows)
    return (
        f"{table(head, body)}\n\nLayer by layer, in the geometric mean of all {len(rows)} rows, times as fast as "
        f"{'; '.join(lines)}. The largest difference between any two results is {worst:.0e} of their root mean square."
    )


def optimizer_table(rows: list[dict[str, Any]]) -> str:
    from report import duration, geometric_mean, table

    lists = list(dict.fromkeys(row["list"] for row in rows))
    cells = {(row["optimizer"], row["list"]): row for row in rows}
    body = []
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        line = [name]
        for c in (cells[name, which] for which in lists):
            seconds = c["best"]["fastconv"]
            line.append(f"{duration(seconds)}, {c['bytes'] / seconds / 1e9:.0f} GB/s, **{c['ratio']:.1f}x**")
        body.append(line)
    means = [geometric_mean(row["ratio"] for row in rows if row["list"] == which) for which in lists]
    body.append(["geometric mean", *(f"**{mean:.1f}x**" for mean in means)])
    return table(["a step, times as fast as PyTorch's", *lists], body)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Pictures a second of each library beside PyTorch's, a panel for each direction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sums = totals(rows)
    colours = {"fastconv NHWC": "#0b6e4f", "fastconv NCHW": "#6bbf59", "PyTorch": "#e4572e", "ONNX Runtime": "#4c78a8",
               "NumPy": "#b0b0b0"}  # fmt: skip
    names = list(dict.fromkeys(network for network, _ in sums))
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        for i, (library, colour) in enumerate(colours.items()):
            speeds = [
                total["PyTorch"] / total[library] if library in total else 0.0
                for name in names if (total := sums.get((name, direction), {"PyTorch": 0.0})) is not None
            ]
            if any(speeds):
                panel.bar(np.arange(len(names)) + (i - 2) * 0.17, speeds, 0.16, color=colour, label=library)
        panel.set_title(direction)
        panel.set_xticks(range(len(names)), names)
        panel.axhline(1, color="0.3", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("speed, PyTorch = 1")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer-python", default=sys.executable, help="a Python that has torch, onnx and onnxruntime")
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=0.05, help="how long a call is repeated in a round")
    add("--match", default="", help="only rows with this text in them")
    add("--only", choices=("layers", "optimizers"))
    add("--json", type=Path, help="write every measurement there")
    add("--readme", action="store_true", help="write the tables into README.md and the chart into docs/")
    add("--serve", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        turns.serve(LIBRARIES[args.serve], args.threads)
    else:
        race(args)


def race(args: argparse.Namespace) -> None:
    from report import README, machine, write_section

    elsewhere = dict.fromkeys(("PyTorch", "ONNX Runtime"), args.peer_python)
    workers = turns.start(args.libraries, elsewhere, args.threads)
    layers = race_layers(workers, args) if args.only != "optimizers" else []
    optimizers = race_optimizers(workers, args) if args.only != "layers" and "PyTorch" in workers else []
    who = f"{machine()}; {args.threads} threads, float32; {', '.join(w.versions for w in workers.values())}."
    tables = [write(rows) for write, rows in ((layer_tables, layers), (optimizer_table, optimizers)) if rows]
    print("\n" + "\n\n".join([who, *tables]))
    if args.json:
        args.json.write_text(json.dumps({"who": who, "layers": layers, "optimizers": optimizers}, indent=1))
    if args.readme:
        draw(layers, README.parent / "docs" / "peers.png")
        write_section(README, "peers", "\n\n".join([who, "![Speed beside PyTorch](docs/peers.png)", *tables]))


if __name__ == "__main__":
    main()
