"""The training run: one loop of steps, an evaluation after each epoch, and a folder that holds all there is to know.

    command.txt  config.json  metrics.csv  curves.png  confusion.png  maps.png  checkpoint.safetensors

``start`` begins a run and ``resume`` goes on with it, bit for bit, from whatever step it was stopped at. That takes the
weights, the optimiser's moments and a few counts. No generator: what is random follows from the seed and the number of
the epoch (the order of the images) or of the step (augmentation, dropout).
"""

import contextlib
import itertools
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import data, optim
from ..backend import cuda_problem, to_device
from ..errors import InputError
from ..fast.threads import keep_memory, one_blas_thread
from ..nn import X21D, ViT, X21DConfig
from . import checkpoint, files, pictures
from .config import absolute, config_of, fitted, load_config
from .evaluate import draw_maps, evaluate
from .step import AUGMENTATION, OnCPU, OnGPU, enough_memory, seed_of

COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"
COUNTS = ("step", "seconds", "rows", "sums")  # how far a run is


def load_run(folder):
    """``(model, test_set, mean, std)`` of the run in ``folder``, as ``evaluate`` and ``draw_maps`` take them.

    The model is that of ``load_model``. Raises InputError for what ``resume`` refuses.
    """
    model, meta = load_model(folder)
    config = load_config(folder)
    _, test_set = data.load(config.dataset, config.data_dir, subset=1)  # the training images are not needed
    if list(test_set.classes) != meta["classes"] or fitted(config, test_set) != config:
        raise InputError(f"{config.dataset} has other classes or images of another size than when {folder} was trained")
    return model, test_set, np.float32(meta["mean"]), np.float32(meta["std"])


def load_model(folder):
    """``(model, meta)`` of the run in ``folder``, without its data set.

    The model is in evaluation mode and has the averaged weights if the run keeps an average. It is on the run's
    device, or on the CPU of a machine without a GPU. ``meta`` is what the checkpoint says: among others the
    ``classes``, and ``mean`` and ``std`` of the training images. Raises InputError for a checkpoint that ``resume``
    refuses.
    """
    config = load_config(folder)
    arrays, meta = _load_checkpoint(folder, config)
    device = "cpu" if config.device == "cpu" or cuda_problem() else "cuda"
    model = _built(config.model, np.random.default_rng(config.seed)).to(device)
    if device == "cuda":
        from ..fast import cuda

        cuda.use(config.precision)
    parts = {"model": model}
    if config.ema:
        parts["ema"] = optim.EMA(model.parameters(), config.ema)
    checkpoint.restore(arrays, parts, ignore=("optimizer",))
    if config.ema:
        parts["ema"].flat.data[...] = parts["ema"].average
    return model.eval(), meta


def start(config, folder, command=None):
    """A Trainer for a new run in ``folder``, which is made if need be and gets the configuration and a checkpoint.

    ``command`` is what a person typed to begin the run; it is kept beside the configuration.
    Raises InputError, with nothing written, when the folder is not empty or something in ``config`` cannot be had.
    """
    folder = Path(folder)
    before = _leftovers(folder)
    trainer = Trainer(absolute(config), folder)
    new = not folder.exists()
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _leftovers(folder) != before:  # reading the data takes a while
        raise InputError(f"{folder} is not empty any more: another run began in it; choose another --out")
    try:
        files.write(folder / "config.json", json.dumps(asdict(trainer.config), indent=2).encode() + b"\n")
        if command:
            files.write(folder / "command.txt", os.fsencode(command + "\n"))
        trainer.save()
    except BaseException:
        for name in ("config.json", "command.txt", "metrics.csv"):
            (folder / name).unlink(missing_ok=True)
        if new:
            folder.rmdir()
        raise
    return trainer


def resume(folder, config=None):
    """A Trainer that goes on with the run in ``folder``; a ``config`` that is given must be the run's own.

    Raises InputError, with nothing written, when the checkpoint is damaged, or of another configuration or data set.
    """
    config = absolute(config or load_config(folder))
    arrays, meta = _load_checkpoint(folder, config)
    trainer = Trainer(config, folder)
    trainer.restore(arrays, meta)
    return trainer


def about_images(train_set):
    """What a checkpoint says about the images that a run is trained on, a dict."""
    mean, std = data.channel_stats(train_set.images)
    return {"images": len(train_set), "classes": list(train_set.classes), "mean": mean.tolist(), "std": std.tolist()}


def check_images(folder, meta, about):
    """Raise InputError unless the run in ``folder``, whose checkpoint says ``meta``, has images like ``about``."""
    if any(meta.get(name) != value for name, value in about.items()):
        raise InputError(
            f"the training images of {load_config(folder).dataset} are not those that the run in {folder} was started "
            "with; bring those back, or start a new run"
        )


class Trainer:
    """A training run in memory: data, model, optimiser, and how far it is. Made by ``start`` and ``resume``.

    ``config.model``'s image size, frames, channels and classes are taken from the data. ``score`` is what the columns
    of accuracies hold: mean average precision, "mAP", where images have several labels; in training that of a batch.
    ``result`` is what ``evaluate`` says of a run that is finished.
    """

    def __init__(self, config, folder):
        if config.device == "cuda" and (problem := cuda_problem()):
            raise InputError(f"device cuda cannot be used: {problem}")
        self.folder = Path(folder)
        self.train_set, self.test_set = data.load(config.dataset, config.data_dir, config.subset)
        self.config = config = fitted(config, self.train_set)
        self.about = about_images(self.train_set)
        self.mean, self.std = np.float32(self.about["mean"]), np.float32(self.about["std"])
        self.score = "mAP" if self.train_set.multi_label else "accuracy"

        rng = np.random.default_rng(config.seed)
        self.model = _built(config.model, rng).to(config.device)
        kind = optim.Muon if config.optimizer == "muon" else optim.AdamW
        self.optimizer = kind(self.model.parameters(), config.lr, weight_decay=config.weight_decay)
        self.ema = optim.EMA(self.optimizer, config.ema) if config.ema else None
        kind = OnGPU if config.device == "cuda" else OnCPU
        self.take_step = kind(self.model, self.optimizer, self.ema, rng, config)

        self.epoch_steps = -(-len(self.train_set) // config.batch_size)
        self.total = config.epochs * self.epoch_steps
        self.step, self.seconds = 0, 0.0
        self.rows, self.result = [], None  # rows of metrics.csv: one for each epoch that is over
        self.sums = _nothing_yet()

    def describe(self):
        """One line on what is trained, on what, and where."""
        images = "images" if self.train_set.images.ndim == 4 else "clips"
        return (
            f"{type(self.model).__name__}, {self.model.num_parameters():,} parameters, {_tokens(self.config.model)}, "
            f"on {self.take_step.where}; {len(self.train_set):,} training and {len(self.test_set):,} test {images} "
            f"of {len(self.train_set.classes)} classes"
        )

    def fit(self, on_epoch=lambda row: None):
        """Train to the end, or to the next Ctrl-C, and save. Returns whether the end was reached.

        ``on_epoch`` gets each new row of metrics.csv, a dict, when it is saved. Raises InputError when loss or gradient
        is no finite number and when a file cannot be written; the last checkpoint stays as it is.
        """
        keep_memory()
        test = None
        began = time.perf_counter() - self.seconds
        # NumPy need not warn about numbers that are not finite: they are looked for
        quiet, memory = np.errstate(all="ignore"), enough_memory(self.config)
        with self._progress() as progress, files.ctrl_c() as stop, quiet, one_blas_thread(), memory:
            while len(self.rows) < self.config.epochs and not stop:
                for images, labels in self._rest_of_epoch():
                    self._step(images, labels)
                    if not stop and self.step % self.take_step.every and self.step % self.epoch_steps:
                        continue
                    self._read()
                    self.seconds = time.perf_counter() - began
                    loss, accuracy = self._means()
                    progress.set_postfix_str(f"loss {loss:.3f}, {self.score} {accuracy:.1%}", refresh=False)
                    progress.update(self._seen() - progress.n)
                    if stop:
                        break
                if test := self.evaluate(stop):
                    self.seconds = time.perf_counter() - began
                    self._end_epoch(test)
                self.save()
                if test:
                    on_epoch(self.rows[-1])
            finished = len(self.rows) == self.config.epochs
            if finished:
                if test is None:  # there was nothing left to train, but perhaps to write
                    self.save()
                    test = self.evaluate()
                self.result = test
                self._draw()
        return finished

    def evaluate(self, stop=()):
        """``evaluate`` on the test images, with the averaged weights if there is an average.

        In the end, a run that mirrors images is evaluated with flip averaging as well.
        """
        how = {"threads": self.take_step.threads, "flip": self.config.flip and self.step == self.total}
        with self._evaluated_weights():
            return evaluate(self.model, self.test_set, self.mean, self.std, stop=stop, **how)

    def save(self):
        """Write the metrics and the checkpoint from which ``resume`` goes on."""
        table = [COLUMNS, *(row.values() for row in self.rows)]
        files.write(self.folder / "metrics.csv", "".join(",".join(map(str, line)) + "\n" for line in table).encode())
        meta = {"config": asdict(self.config), **self.about}
        meta |= {name: getattr(self, name) for name in COUNTS}
        checkpoint.save(self.folder / CHECKPOINT, checkpoint.collect(self._parts()), meta)

    def restore(self, arrays, meta):
        """Go on from what ``save`` wrote. Raises InputError when names or the training images differ."""
        check_images(self.folder, meta, self.about)
        checkpoint.restore(arrays, self._parts())
        for name in COUNTS:
            setattr(self, name, meta[name])

    def _parts(self):
        return {"model": self.model, "optimizer": self.optimizer} | ({"ema": self.ema} if self.ema else {})

    def _rest_of_epoch(self):
        """The batches of this epoch that are still to come."""
        epoch = len(self.rows)
        order = np.random.default_rng([epoch + 1, self.config.seed])
        batches = data.Loader(self.train_set, self.config.batch_size, shuffle=True, rng=order)
        return itertools.islice(batches, self.step - epoch * self.epoch_steps, None)

    def _step(self, images, labels):
        config = self.config
        self.optimizer.lr = optim.warmup_cosine(self.step, self.total, int(config.warmup * self.total), config.lr)
        images, labels = to_device(images, config.device), to_device(labels, config.device)
        rng = np.random.default_rng(seed_of(config, AUGMENTATION, self.step))
        mixing = self.step < config.mix_until * self.total
        inputs, targets = data.training_batch(images, labels, config, self.mean, self.std, rng, mixing)
        self.take_step(inputs, targets, labels, self.step)
        self.step += 1
        self.sums["images"] += len(labels)

    def _read(self):
        """Take over what the steps since the last time found. Raises InputError for a number that is not finite."""
        found = self.take_step.read()
        for number, (loss, correct, norm) in enumerate(found, self.step - len(found) + 1):
            self._expect_finite(loss, f"the loss of step {number} of {self.total}")
            self._expect_finite(norm, f"the norm of the gradient in step {number} of {self.total}")
            self.sums["loss"] += loss
            self.sums["correct"] += correct

    def _expect_finite(self, value, what):
        if not np.isfinite(value):
            raise InputError(
                f"{what} is {value}, so training stopped; the last checkpoint in {self.folder} is from before and is "
                f"untouched. Start a new run with a smaller learning rate than {self.config.lr}"
            )

    def _means(self):
        """Loss and accuracy over the training images of this epoch so far."""
        return self.sums["loss"] / self.sums["images"], self.sums["correct"] / self.sums["images"]

    def _end_epoch(self, test):
        self._expect_finite(test["loss"], f"the test loss after step {self.step} of {self.total}")
        values = (len(self.rows) + 1, self.step, *self._means(), test["loss"], test["accuracy"], round(self.seconds, 2))
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        self.sums = _nothing_yet()

    def _draw(self):
        """All pictures; the curves come last, and show that the run is finished."""
        if "confusion" in self.result:
            picture = pictures.confusion(self.result["confusion"], self.test_set.classes)
            files.write(self.folder / "confusion.png", pictures.png(picture))
        if self.model.has_maps:
            with self._evaluated_weights():
                draw_maps(self.folder / "maps.png", self.model, self.test_set, self.mean, self.std)
        files.write(self.folder / CURVES, pictures.png(pictures.curves(self.rows, self.score)))

    def _progress(self):
        """A bar that counts images, on a terminal; nothing elsewhere."""
        from tqdm import tqdm

        seen = {"total": self.config.epochs * len(self.train_set), "initial": self._seen()}
        return tqdm(**seen, unit=" images", unit_scale=True, dynamic_ncols=True, leave=False, disable=None)

    def _seen(self):
        """How many images the run has been through."""
        return len(self.rows) * len(self.train_set) + self.sums["images"]

    def _evaluated_weights(self):
        return self.ema.weights() if self.ema else contextlib.nullcontext()


def _leftovers(folder):
    """The files that a run left which ended before its checkpoint. Raises InputError where there are others."""
    names = ("config.json", "command.txt", "metrics.csv")
    ours = {*names, *(f"{name}.tmp" for name in (*names, CHECKPOINT))}
    with files.writing(folder):
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found - ours:
        raise InputError(f"{folder} is not empty; go on with it by --resume, or choose another --out")
    return found


def _nothing_yet():
    return {"images": 0, "loss": 0.0, "correct": 0}


def _built(config, rng):
    return (X21D if isinstance(config, X21DConfig) else ViT)(config, rng)


def _tokens(config):
    """In words, what becomes of the tokens in the model of this configuration."""
    if isinstance(config, X21DConfig):
        return "a convolution over time" if config.last == "conv" else f"{config.num_tokens} tokens of each frame"
    ways = {
        "learner": f"TokenLearner {config.version}",
        "pool": "grid pooling",
        "static": "static pooling",
        "dense": "a linear layer on all patches",
        "mean-dense": "a linear layer on their mean",
        "query": "learned queries",
        "gate": "spatial gates",
    }
    backs = {"fuser": "TokenFuser", "unpool": "unpooling", "reproject": "re-projection"}
    frames = "" if config.frames == 1 else f"{config.time_steps} x "
    text = f"{frames}{config.grid[0] * config.grid[1]} tokens"
    if config.tokenizer != "none":
        text += f" -> {frames}{config.num_tokens} by {ways[config.tokenizer]} before block {config.loc}"
    if config.back != "none":
        text += f" and each later one, back by {backs[config.back]}"
    return text


def _load_checkpoint(folder, config):
    """``(arrays, meta)`` of the run in ``folder``. Raises InputError unless it is a run of this configuration."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        raise InputError(f"there is no checkpoint in {folder}; if it ended so early, start it anew with the same --out")
    arrays, meta = checkpoint.load(path)
    meta = meta if isinstance(meta, dict) else {}
    if missing := {"config", "images", "classes", "mean", "std", *COUNTS} - meta.keys():
        raise InputError(
            f"{path} is no checkpoint of a training run: it says nothing about {', '.join(sorted(missing))}"
        )
    try:
        saved = asdict(config_of(meta["config"]))
    except (ValueError, TypeError, KeyError):  # not even of this minitl: say in which fields
        saved = meta["config"]
    checkpoint.compare_config(saved, asdict(config))
    return arrays, meta
