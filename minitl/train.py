"""The training run: one loop of steps, an evaluation per epoch, and a folder that holds all there is to know about it.

    config.json  metrics.csv  curves.png  maps.png  checkpoint.safetensors

One generator decides everything random (weights, order, augmentation, dropout), so saving its state with the weights
is enough to go on bit for bit from any step.
"""

import contextlib
import csv
import io
import itertools
import json
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from . import checkpoint, data, ops, optim, report
from .autograd import no_grad
from .backend import InputError, to_device
from .nn import ViT, ViTConfig

COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")


@dataclass(frozen=True)
class TrainConfig:
    """One training run, checked when it is made. Raises InputError for a value out of range."""

    dataset: str = "clutter"
    """clutter, cifar10, cifar100, or a folder, zip or tar of split/class/image files"""
    model: ViTConfig = field(default_factory=lambda: ViTConfig(version="1.1", pre_norm=False))
    epochs: int = 10
    """passes over the training images"""
    batch_size: int = 100
    """images per step"""
    lr: float = 4e-3
    """largest learning rate of AdamW; it rises linearly, then falls along half a cosine"""
    warmup: float = 0.1
    """share of all steps in which the learning rate rises"""
    weight_decay: float = 0.05
    """decoupled decay of all matrices"""
    clip: float = 1.0
    """largest norm of the gradient; larger ones are scaled down to it"""
    label_smoothing: float = 0.0
    """share of each target that is spread over all classes"""
    ema: float = 0.0
    """decay of the moving average of the weights that is evaluated; 0 evaluates the weights themselves"""
    flip: bool = False
    """mirror half of the training images"""
    crop: int = 0
    """pad training images by so many pixels and crop them back at a random place"""
    cutout: int = 0
    """side of a square that is blanked in each training image"""
    mixup: float = 0.0
    """alpha of mixup: blend pairs of training images and their labels"""
    cutmix: float = 0.0
    """alpha of cutmix: paste a box of one training image into another; with mixup, one of the two per batch"""
    subset: int | None = None
    """train on at most so many images, equally many of each class"""
    data_dir: str | None = None
    """where downloads are kept; $MINITL_DATA or ~/.cache/minitl otherwise"""
    seed: int = 0
    """decides everything random"""
    device: str = "cpu"
    """cpu or cuda"""

    def __post_init__(self):
        for name, low, high in (
            ("epochs", 1, np.inf),
            ("batch_size", 1, np.inf),
            ("lr", 1e-12, np.inf),
            ("warmup", 0, 0.99),
            ("weight_decay", 0, np.inf),
            ("clip", 1e-12, np.inf),
            ("label_smoothing", 0, 0.99),
            ("ema", 0, 0.99999),
            ("crop", 0, np.inf),
            ("cutout", 0, np.inf),
            ("mixup", 0, np.inf),
            ("cutmix", 0, np.inf),
            ("seed", 0, 2**32),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} lies between {low} and {high}, got {getattr(self, name)}")


def load_config(folder):
    """The TrainConfig that a run in ``folder`` was started with. Raises InputError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"there is no run in {folder}, {path} is missing; give the folder that `minitl train` named")
    try:
        saved = json.loads(path.read_text())
        model = saved["model"] | {"image_size": tuple(saved["model"]["image_size"])}
        return TrainConfig(**saved | {"model": ViTConfig(**model)})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is no configuration of this minitl: {error}; restore it, or start a new run"
        ) from error


def evaluate(model, dataset, mean, std, batch_size=200):
    """``{"loss", "accuracy"}`` of a model on a data set, and ``"map_mass"`` where it has boxes and the model maps.

    ``mean`` and ``std`` (channels,) are those of the training images; the model is left in its mode.
    """
    loss = correct = mass = 0.0
    with_maps = dataset.boxes is not None and model.tokenizer is not None
    device = model_device(model)
    mode, _ = model.training, model.eval()
    with no_grad():
        for start in range(0, len(dataset), batch_size):
            part = dataset.take(slice(start, start + batch_size))
            images = to_device(data.normalize(part.images, mean, std), device)
            logits = model(images)
            loss += ops.cross_entropy(logits, to_device(part.labels, device)).item() * len(part)
            correct += int((logits.data.argmax(1) == to_device(part.labels, device)).sum())
            if with_maps:
                mass += report.map_mass(model.maps(images), part.boxes, part.images.shape[1:3]).sum()
    model.train(mode)
    found = {"loss": loss / len(dataset), "accuracy": correct / len(dataset)}
    return found | ({"map_mass": float(mass / len(dataset))} if with_maps else {})


def model_device(model):
    """``"cpu"`` or ``"cuda"``, by where the weights are."""
    return "cpu" if isinstance(model.head.weight.data, np.ndarray) else "cuda"


class Trainer:
    """A training run in memory: data, model, optimiser, and where in the run it is.

    ``config.model``'s image size, channels and classes are taken from the data. Nothing is written before ``start``.
    """

    def __init__(self, config, folder):
        self.folder = Path(folder)
        self.train_set, self.test_set = data.load(config.dataset, config.data_dir, config.subset)
        _, *image_size, channels = self.train_set.images.shape
        known = {"image_size": tuple(image_size), "channels": channels, "num_classes": len(self.train_set.classes)}
        self.config = replace(config, model=replace(config.model, **known))
        self.mean, self.std = data.channel_stats(self.train_set.images)

        self.rng = np.random.default_rng(config.seed)
        self.model = ViT(self.config.model, self.rng).to(config.device)
        self.optimizer = optim.AdamW(self.model.parameters(), config.lr, weight_decay=config.weight_decay)
        self.ema = optim.EMA(self.optimizer, config.ema) if config.ema else None
        self.loader = data.Loader(self.train_set, config.batch_size, shuffle=True, rng=self.rng, augment=self._augment)
        self.total = config.epochs * len(self.loader)

        self.step, self.seconds, self.rows = 0, 0.0, []
        self._begin_epoch()

    def start(self):
        """Make the folder of a new run and write its configuration. Raises InputError when it is not empty."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise InputError(f"{self.folder} is not empty; go on with it by --resume, or choose another --out")
            (self.folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}; choose another --out") from error

    def describe(self):
        """One line on what is trained, on what, and where."""
        model = self.config.model
        tokens = {"learner": f"TokenLearner {model.version}", "pool": "grid pooling", "static": "static pooling"}
        height, width = model.grid
        few = (
            f" -> {model.num_tokens} by {tokens[model.tokenizer]} at block {model.loc}" if self.model.tokenizer else ""
        )
        return (
            f"ViT, {self.model.num_parameters():,} parameters, {height * width} tokens{few}, on {self.config.device}; "
            f"{len(self.train_set):,} training and {len(self.test_set):,} test images of {model.num_classes} classes"
        )

    def fit(self, log=lambda line: None):
        """Train to the end, or to the next Ctrl-C; returns whether the end was reached.

        ``log`` gets a line per epoch. Raises InputError when the loss is not a number.
        """
        from tqdm import tqdm

        bar = tqdm(total=self.total, initial=self.step, disable=None, dynamic_ncols=True, leave=False, unit="step")
        clock = time.perf_counter() - self.seconds
        with bar, _stop_on_ctrl_c() as stop:
            while self.step < self.total:
                for images, labels in self._rest_of_epoch():
                    self._step(images, labels)
                    self.seconds = time.perf_counter() - clock
                    bar.set_postfix_str(self._progress(), refresh=False)
                    bar.update()
                    if stop and self.step % len(self.loader):
                        self.save()
                        return False
                self._end_epoch(log)
                self.seconds = time.perf_counter() - clock
                if stop and self.step < self.total:
                    return False
        self._draw()
        return True

    def evaluate(self):
        """``evaluate`` on the test split."""
        with self._evaluated_weights():
            return evaluate(self.model, self.test_set, self.mean, self.std)

    def draw_maps(self, path, count=8):
        """Save a picture of the maps over the first ``count`` test images. Raises InputError without maps."""
        if self.model.tokenizer is None:
            raise InputError(f"the model of {self.folder} keeps all its tokens, so it has no maps to draw")
        some = self.test_set.take(slice(count))
        images = to_device(data.normalize(some.images, self.mean, self.std), self.config.device)
        with self._evaluated_weights(), no_grad():
            maps = self.model.eval().maps(images)
        self.model.train()
        report.show_maps(some.images, maps, some.boxes).savefig(path)

    def save(self):
        """Write the checkpoint; the run goes on from it bit for bit."""
        meta = {
            "config": asdict(self.config),
            "classes": self.train_set.classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "step": self.step,
            "sums": self.sums,
            "rows": self.rows,
            "seconds": self.seconds,
            "generator": checkpoint.generator_state(self.rng),
            "epoch_generator": self.epoch_generator,
        }
        checkpoint.save(self.folder / "checkpoint.safetensors", checkpoint.collect(self._parts()), meta)

    def resume(self):
        """Go on from the checkpoint in the folder. Raises InputError when it is damaged or of another configuration."""
        arrays, meta = checkpoint.load(self.folder / "checkpoint.safetensors")
        checkpoint.compare_config(meta["config"], asdict(self.config))
        checkpoint.restore(arrays, self._parts())
        self.step, self.sums, self.rows, self.seconds = (meta[key] for key in ("step", "sums", "rows", "seconds"))
        self.epoch_generator = meta["epoch_generator"]
        checkpoint.set_generator_state(self.rng, meta["generator"])

    def _parts(self):
        return {"model": self.model, "optimizer": self.optimizer} | ({"ema": self.ema} if self.ema else {})

    def _begin_epoch(self):
        self.epoch_generator = checkpoint.generator_state(self.rng)
        self.sums = {"loss": 0.0, "correct": 0, "images": 0}

    def _rest_of_epoch(self):
        """The batches of this epoch that are still to come, in the order drawn at its start."""
        now, done = checkpoint.generator_state(self.rng), self.step % len(self.loader)
        if not done:
            return iter(self.loader)
        checkpoint.set_generator_state(self.rng, self.epoch_generator)
        batches = itertools.islice(self.loader, done - 1, None)
        next(batches)
        checkpoint.set_generator_state(self.rng, now)
        return batches

    def _step(self, images, labels):
        config, model = self.config, self.model
        self.optimizer.lr = optim.warmup_cosine(self.step, self.total, int(config.warmup * self.total), config.lr)
        images, targets = self._mix(data.normalize(images, self.mean, self.std), labels)
        logits = model(to_device(images, config.device))
        targets = to_device(targets, config.device)
        loss = ops.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not np.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {self.step + 1} of {self.total}; training stopped. The last checkpoint in "
                f"{self.folder}, if there is one, is untouched. Try a smaller learning rate than {config.lr}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.clip_grad_norm(config.clip)
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        self.sums["loss"] += value * len(labels)
        self.sums["correct"] += int((logits.data.argmax(1) == to_device(labels, config.device)).sum())
        self.sums["images"] += len(labels)

    def _augment(self, images, rng):
        config = self.config
        if config.flip:
            images = data.flip(images, rng)
        if config.crop:
            images = data.random_crop(images, config.crop, rng)
        return data.cutout(images, config.cutout, rng) if config.cutout else images

    def _mix(self, images, labels):
        """Mixup or cutmix with soft targets, or both arguments as they are."""
        mixes = [
            (mix, alpha) for mix, alpha in ((data.mixup, self.config.mixup), (data.cutmix, self.config.cutmix)) if alpha
        ]
        if not mixes:
            return images, labels
        mix, alpha = mixes[self.rng.integers(len(mixes))]
        return mix(images, data.one_hot(labels, self.config.model.num_classes), alpha, self.rng)

    def _progress(self):
        seen = (self.step // len(self.loader)) * len(self.train_set) + self.sums["images"] % len(self.train_set)
        mean = {key: self.sums[key] / self.sums["images"] for key in ("loss", "correct")}
        return f"loss {mean['loss']:.3f}, accuracy {mean['correct']:.1%}, {seen / self.seconds:.0f} images/s"

    def _end_epoch(self, log):
        test = self.evaluate()
        row = {
            "epoch": self.step // len(self.loader),
            "step": self.step,
            "train_loss": self.sums["loss"] / self.sums["images"],
            "train_accuracy": self.sums["correct"] / self.sums["images"],
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
            "seconds": round(self.seconds, 2),
        }
        self.rows.append(row)
        self._begin_epoch()
        self.save()
        self._write_text()
        log(
            f"epoch {row['epoch']:3d}/{self.config.epochs}   train loss {row['train_loss']:.3f}  accuracy "
            f"{row['train_accuracy']:.1%}   test loss {row['test_loss']:.3f}  accuracy {row['test_accuracy']:.1%}   "
            f"{row['seconds']:.0f} s"
        )

    def _write_text(self):
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        (self.folder / "metrics.csv").write_text(table.getvalue())

    def _draw(self):
        report.curves(self.rows).savefig(self.folder / "curves.png")
        if self.model.tokenizer is not None:
            self.draw_maps(self.folder / "maps.png")

    def _evaluated_weights(self):
        """The averaged weights for a while when ``config.ema`` is set, otherwise nothing changes."""
        return self.ema.weights() if self.ema else contextlib.nullcontext()


@contextlib.contextmanager
def _stop_on_ctrl_c():
    """Yields a list that is not empty after Ctrl-C; the second Ctrl-C interrupts as usual."""
    pressed = []

    def on_signal(*_):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # only the main thread may set a handler
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
