"""The training run: a loop of steps with evaluations in between, and a folder with everything about the run.

    command.txt  config.json  metrics.csv  curves.png  confusion.png  maps.png  checkpoint.safetensors

``start`` begins a run and ``resume`` continues it, bit for bit, from the step at which it was stopped. A checkpoint
holds the weights, the optimizer's moments and a few counts, but no generator states: random numbers follow from the
seed and the number of the epoch (order of the images) or of the step (augmentation, dropout).
"""

import contextlib
import itertools
import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from .. import data, optim
from ..backend import cuda_problem, to_device
from ..errors import InputError
from ..fast.threads import keep_memory, one_blas_thread
from ..interop import split_spec
from ..nn import X21D
from ..nn.reduce import REDUCTIONS
from . import checkpoint, files, pictures
from .augmentation import training_batch
from .config import absolute, check_data, config_of, load_config
from .evaluate import draw_maps, evaluate
from .step import AUGMENTATION, build_model, enough_memory, seed_of, training_step, use_precision

COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"
PROGRESS = ("step", "seconds", "rows", "sums")  # attributes of a Trainer that a checkpoint keeps
SAVE_SECONDS = 60  # between checkpoints on a GPU, where an epoch may take less time than an evaluation
WARMUP_STEPS = 4  # not timed; on a GPU two are eager, the third is recorded, the fourth is the first replay
TIMED_STEPS = 64


def load_run(folder):
    """Return ``(model, test_set, mean, std)`` of the run in ``folder``, as ``evaluate`` and ``draw_maps`` take them.

    The model is that of ``load_model``. Raises InputError for anything that ``resume`` refuses.
    """
    model, meta = load_model(folder)
    config = load_config(folder)
    _, test_set = data.load(config.dataset, config.data_dir, subset=1)  # the training images are not needed
    if list(test_set.classes) != meta["classes"] or test_set.spec != model.spec:
        raise InputError(
            f"the classes or the image size of {config.dataset} have changed since {folder} was trained; "
            "restore it, or train again"
        )
    return model, test_set, np.float32(meta["mean"]), np.float32(meta["std"])


def load_model(folder):
    """Return ``(model, meta)`` of the run in ``folder``, without its data set.

    The model is in evaluation mode and has the averaged weights if the run keeps an average. It is on the run's
    device, or on the CPU if there is no GPU. ``meta`` is that of the checkpoint, including the ``classes``, and
    ``mean`` and ``std`` of the training images. Raises InputError for a checkpoint that ``resume`` refuses.
    """
    config = load_config(folder)
    arrays, meta = load_checkpoint(folder, config)
    device = "cpu" if config.device == "cpu" or cuda_problem() else "cuda"
    model = build_model(config.model, meta["spec"], np.random.default_rng(config.seed)).to(device)
    if device == "cuda":
        use_precision(config.precision)
    parts = {"model": model}
    if config.ema:
        parts["ema"] = optim.EMA(model.parameters(), config.ema)
    checkpoint.restore(arrays, parts, ignore=("optimizer",))
    if config.ema:
        parts["ema"].flat.data[...] = parts["ema"].average
    return model.eval(), meta


def model_of(meta):
    """Return the model of a checkpoint's ``meta``, as ``checkpoint.load`` returns it, with weights to be restored."""
    return build_model(config_of(meta["config"]).model, _spec_of(meta))


def _spec_of(meta):
    """Return the DataSpec in the ``meta`` of a checkpoint; older ones have its fields among the model's options."""
    return split_spec(meta.get("spec", meta["config"]["model"]))[1]


def start(config, folder, command=None):
    """Return a Trainer for a new run in ``folder``, which is created if necessary; save configuration and checkpoint.

    ``command``, the command as typed, is kept beside the configuration. Raises InputError, with no files written, if
    the folder is not empty or ``config`` does not fit the data set, the machine or its ``minutes``.
    """
    folder = Path(folder)
    before = _leftovers(folder)
    trainer = Trainer(absolute(config), folder)
    if config.minutes:
        trainer.choose_epochs()
    new = not folder.exists()
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _leftovers(folder) != before:  # loading the data takes a while
        raise InputError(f"{folder} is no longer empty: another run has started there; choose another --out")
    try:
        files.write(folder / "config.json", json.dumps(asdict(trainer.config), indent=2).encode() + b"\n")
        if command:
            files.write(folder / "command.txt", os.fsencode(command + "\n"))
        trainer.save()
    except BaseException:
        for name in ("config.json", "command.txt", "metrics.csv", CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return trainer


def resume(folder, config=None):
    """Return a Trainer that continues the run in ``folder``; ``config``, if given, must be the run's own.

    Raises InputError, with nothing written, if the checkpoint is damaged, has another configuration or data set, or was
    saved by an earlier minitl that rounds differently.
    """
    config = absolute(config or load_config(folder))
    arrays, meta = load_checkpoint(folder, config)
    if meta["before_spec"]:
        raise InputError(
            f"the run in {folder} was started by an earlier minitl, whose steps round differently; continue it with "
            "that version, or start a new run (eval, maps, predict and export accept it)"
        )
    trainer = Trainer(config, folder)
    trainer.restore(arrays, meta)
    return trainer


def about_images(train_set):
    """Return a dict of the facts about the training images that a checkpoint keeps."""
    mean, std = data.channel_stats(train_set.images)
    stats = {"classes": list(train_set.classes), "mean": mean.tolist(), "std": std.tolist()}
    return {"spec": train_set.spec, "images": len(train_set), **stats}


def check_images(folder, meta, about):
    """Raise InputError unless the run in ``folder``, whose checkpoint has this ``meta``, has images like ``about``."""
    if any(meta.get(name) != value for name, value in about.items()):
        raise InputError(
            f"the training images of {load_config(folder).dataset} are not those that the run in {folder} was started "
            "with; restore those, or start a new run"
        )


class Trainer:
    """A training run in memory: data, model, optimizer and progress. ``start`` and ``resume`` return one.

    ``score`` is the kind of accuracy: "mAP", mean average precision, if images have several labels (in training, the
    mean over batches). ``result`` is that of ``evaluate`` once the run is finished. ``resident`` is the training set,
    on a GPU if it fits there.
    """

    def __init__(self, config, folder):
        if config.device == "cuda" and (problem := cuda_problem()):
            raise InputError(f"device cuda cannot be used: {problem}")
        self.folder = Path(folder)
        self.train_set, self.test_set = data.load(config.dataset, config.data_dir, config.subset)
        check_data(config, self.train_set)
        self.config, self.about = config, about_images(self.train_set)
        self.mean, self.std = np.float32(self.about["mean"]), np.float32(self.about["std"])
        self.score = "mAP" if self.train_set.multi_label else "accuracy"

        rng = np.random.default_rng(config.seed)
        self.model = build_model(config.model, self.train_set.spec, rng).to(config.device)
        self.take_step = training_step(self.model, rng, config)
        self.optimizer, self.ema = self.take_step.optimizer, self.take_step.ema
        self.resident = self.take_step.resident(self.train_set)

        self.epoch_steps = math.ceil(len(self.train_set) / config.batch_size)
        self.total = config.epochs * self.epoch_steps
        self.save_every = config.save_every or int(config.device == "cpu")  # epochs; 0: by the clock
        self.step, self.seconds = 0, 0.0
        self.rows, self.result = [], None  # rows of metrics.csv, one per evaluation
        self.sums = _empty_sums()  # over the images of this epoch
        self.pace = ""

    def describe(self):
        """Return a line on the model, the data and the device, and one on the pace if that was measured."""
        images = "images" if self.train_set.images.ndim == 4 else "clips"
        return (
            f"{type(self.model).__name__}, {self.model.num_parameters():,} parameters, {_tokens(self.model)}, "
            f"on {self.take_step.where}; {len(self.train_set):,} training and {len(self.test_set):,} test {images} "
            f"of {len(self.train_set.classes)} classes{self.pace}"
        )

    def fit(self, on_epoch=lambda row: None):
        """Train to the end, or until Ctrl-C, and save. Returns True if the end was reached.

        ``on_epoch`` is called with each new row of metrics.csv, a dict, after it is saved. Raises InputError if the
        loss or the gradient is not finite or a file cannot be written; the last checkpoint stays as it is.
        """
        test = None
        began = time.perf_counter() - self.seconds
        with self._progress() as progress, files.ctrl_c() as stop, self._at_work():
            while not stop and (self.step < self.total or self._evaluation_is_due()):
                if not self._evaluation_is_due():  # Ctrl-C at the end of an epoch leaves it to be done
                    self._train_epoch(began, progress, stop)
                test = self.evaluate(stop) if self._evaluation_is_due() else None
                if test:
                    self.seconds = time.perf_counter() - began
                    self._add_row(test)
                if test or stop:
                    self.save()
                if test:
                    on_epoch(self.rows[-1])
            finished = self.step == self.total and not self._evaluation_is_due()
            if finished:
                if test is None:  # nothing was left to train, but perhaps to write
                    self.save()
                    test = self.evaluate()
                self.result = test
                self._draw()
        return finished

    def choose_epochs(self):
        """Set ``config.epochs`` to the number that fits into ``config.minutes``, by timing some steps and evaluations.

        They leave no trace: the run equals one started with this number of epochs. Raises InputError, with the time of
        an epoch, if not even one fits.
        """
        state = {name: array.copy() for name, array in checkpoint.collect(self._parts()).items()}
        available, count, taken = 60 * self.config.minutes, 1, 0.0
        batches = itertools.chain.from_iterable(self._rest_of_epoch() for _ in itertools.count())
        with self._at_work():
            self._time(batches, WARMUP_STEPS)
            while count < TIMED_STEPS and taken < available / 100:
                count *= 2
                images, taken = self._time(batches, count)
            for _ in range(1 if self.config.device == "cpu" else 2):  # on a GPU the first one also compiles
                began = time.perf_counter()
                self.evaluate()
            evaluation = time.perf_counter() - began
        checkpoint.restore(state, self._parts())
        self.step, self.sums = 0, _empty_sums()

        rate = images / taken
        epoch = len(self.train_set) / rate
        every = self.save_every or math.ceil(SAVE_SECONDS / epoch)

        def seconds(epochs):
            return epochs * epoch + (math.ceil(epochs / every) + self.config.flip) * evaluation

        epochs = next((n for n in range(int(available / epoch), 0, -1) if seconds(n) <= available), 0)
        fit, speed = f"into {self.config.minutes:g} minutes", f"{rate:,.0f} images per second"
        if not epochs:
            raise InputError(
                f"not even one epoch fits {fit}: with its evaluation it takes {seconds(1) / 60:.2g} minutes ({speed}); "
                "choose more minutes, or fewer images with subset"
            )
        self.config = replace(self.config, epochs=epochs)
        self.total = epochs * self.epoch_steps
        self.pace = f"\n{epochs} epoch{'s fit' if epochs > 1 else ' fits'} {fit} ({speed})"

    def evaluate(self, stop=()):
        """Evaluate on the test images, with averaged weights if there are any; None as soon as ``stop`` is not empty.

        At the end, a run that mirrors images is also evaluated with flip averaging.
        """
        how = {"flip": self.config.flip and self.step == self.total, **self.take_step.inference}
        with self._evaluated_weights():
            return evaluate(self.model, self.test_set, self.mean, self.std, stop=stop, **how)

    def save(self):
        """Write the metrics and the checkpoint from which ``resume`` continues."""
        files.write_csv(self.folder / "metrics.csv", COLUMNS, self.rows)
        meta = {"config": asdict(self.config), **self.about, "spec": asdict(self.model.spec)}
        meta |= {name: getattr(self, name) for name in PROGRESS}
        checkpoint.save(self.folder / CHECKPOINT, checkpoint.collect(self._parts()), meta)

    def restore(self, arrays, meta):
        """Continue from what ``save`` wrote. Raises InputError if the names or the training images differ."""
        check_images(self.folder, meta, self.about)
        checkpoint.restore(arrays, self._parts())
        for name in PROGRESS:
            setattr(self, name, meta[name])

    def _parts(self):
        return {"model": self.model, "optimizer": self.optimizer} | ({"ema": self.ema} if self.ema else {})

    def _rest_of_epoch(self):
        """Return the remaining batches of this epoch."""
        epoch, done = divmod(self.step, self.epoch_steps)
        order = np.random.default_rng([epoch + 1, self.config.seed])
        batches = data.Loader(self.resident, self.config.batch_size, shuffle=True, rng=order)
        return itertools.islice(batches, done, None)

    def _train_epoch(self, began, progress, stop):
        """Train to the end of this epoch, or until ``stop`` is not empty."""
        if self.step % self.epoch_steps == 0:
            self.sums = _empty_sums()
        for images, labels in self._rest_of_epoch():
            self._train_batch(images, labels)
            if not stop and self.step % self.take_step.every and self.step % self.epoch_steps:
                continue  # reading waits for the GPU: only every few steps, at the end of an epoch, and when stopping
            self._read()
            self.seconds = time.perf_counter() - began
            loss, accuracy = self._means()
            progress.set_postfix_str(f"loss {loss:.3f}, {self.score} {accuracy:.1%}", refresh=False)
            progress.update(self._seen() - progress.n)
            if stop:
                break

    def _time(self, batches, count):
        """Train on the next ``count`` batches. Returns the number of their images and the seconds that it took."""
        began, images = time.perf_counter(), 0
        for batch in itertools.islice(batches, count):
            self._train_batch(*batch)
            images += len(batch[1])
        self.take_step.read()  # waits for the GPU
        return images, time.perf_counter() - began

    def _evaluation_is_due(self):
        """Return True at the end of an epoch that gets a row of metrics.csv and has none yet."""
        last = self.rows[-1] if self.rows else {"step": 0, "seconds": 0.0}
        epoch, steps = divmod(self.step, self.epoch_steps)
        if steps or self.step == last["step"]:
            return False
        waited = self.seconds - last["seconds"] >= SAVE_SECONDS
        return self.step == self.total or (epoch % self.save_every == 0 if self.save_every else waited)

    def _train_batch(self, images, labels):
        config = self.config
        self.optimizer.lr = optim.warmup_cosine(self.step, self.total, int(config.warmup * self.total), config.lr)
        images, labels = to_device(images, config.device), to_device(labels, config.device)
        rng = np.random.default_rng(seed_of(config, AUGMENTATION, self.step))
        mixing = self.step < config.mix_until * self.total
        classes = self.model.spec.num_classes
        inputs, targets = training_batch(images, labels, config, classes, self.mean, self.std, rng, mixing)
        self.take_step(inputs, targets, labels, self.step)
        self.step += 1
        self.sums["images"] += len(labels)

    def _read(self):
        """Add up the metrics of the steps since the last call. Raises InputError for a number that is not finite."""
        steps = self.take_step.read()
        for number, (loss, correct, norm) in enumerate(steps, self.step - len(steps) + 1):
            self._expect_finite(loss, f"the loss of step {number} of {self.total}")
            self._expect_finite(norm, f"the norm of the gradient in step {number} of {self.total}")
            self.sums["loss"] += loss
            self.sums["correct"] += correct

    def _expect_finite(self, value, name):
        if not np.isfinite(value):
            raise InputError(
                f"{name} is {value}, so training stopped; the last checkpoint in {self.folder} is older and untouched. "
                f"Start a new run with a smaller learning rate than {self.config.lr}"
            )

    def _means(self):
        """Return loss and accuracy over the training images of this epoch so far."""
        return self.sums["loss"] / self.sums["images"], self.sums["correct"] / self.sums["images"]

    def _add_row(self, test):
        self._expect_finite(test["loss"], f"the test loss after step {self.step} of {self.total}")
        epoch, seconds = self.step // self.epoch_steps, round(self.seconds, 2)
        values = (epoch, self.step, *self._means(), test["loss"], test["accuracy"], seconds)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def _draw(self):
        """Draw all figures; the curves come last, and mark the run as finished."""
        if "confusion" in self.result:
            figure = pictures.confusion(self.result["confusion"], self.test_set.classes)
            files.write(self.folder / "confusion.png", pictures.png(figure))
        if self.model.has_maps:
            with self._evaluated_weights():
                draw_maps(self.folder / "maps.png", self.model, self.test_set, self.mean, self.std)
        files.write(self.folder / CURVES, pictures.png(pictures.curves(self.rows, self.score)))

    def _progress(self):
        """Return a progress bar of images, which is shown on a terminal only."""
        from tqdm import tqdm

        images = {"total": self.config.epochs * len(self.train_set), "initial": self._seen()}
        return tqdm(**images, unit=" images", unit_scale=True, dynamic_ncols=True, leave=False, disable=None)

    def _seen(self):
        """Return the number of images that the run has processed."""
        epoch, steps = divmod(self.step, self.epoch_steps)
        return epoch * len(self.train_set) + steps * self.config.batch_size

    @contextlib.contextmanager
    def _at_work(self):
        """Set up what training needs; warnings about numbers that are not finite are off, because ``_read`` checks."""
        keep_memory()
        with np.errstate(all="ignore"), one_blas_thread(), enough_memory(self.config):
            yield

    def _evaluated_weights(self):
        return self.ema.weights() if self.ema else contextlib.nullcontext()


def _leftovers(folder):
    """Return the files of a run that ended before its first checkpoint. Raises InputError if there are others."""
    names = ("config.json", "command.txt", "metrics.csv")
    ours = {*names, *(f"{name}.tmp" for name in (*names, CHECKPOINT))}
    with files.writing(folder):
        present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if present - ours:
        raise InputError(f"{folder} is not empty; continue it with --resume, or choose another --out")
    return present


def _empty_sums():
    return {"images": 0, "loss": 0.0, "correct": 0}


def _tokens(model):
    """Describe what happens to the tokens in a model."""
    config = model.config
    if isinstance(model, X21D):
        return "a convolution over time" if config.last == "conv" else f"{config.num_tokens} tokens of each frame"
    ways = {
        "learner": f"TokenLearner {config.version}",
        "pool": "grid pooling",
        "static": "static pooling",
        "dense": "a linear layer on all patches",
        "mean-dense": "a linear layer on their mean",
        "query": "learned queries",
        "gate": "spatial gates",
        "merge": "merging",
        "topk": "top-k attention",
    }
    backs = {"fuser": "TokenFuser", "unpool": "unpooling", "reproject": "re-projection"}
    T, rows, columns = model.grid
    frames = "" if model.spec.frames == 1 else f"{T} x "
    text = f"{frames}{rows * columns} tokens"
    if config.tokenizer != "none":
        where = "in" if config.tokenizer in REDUCTIONS else "before"
        text += f" -> {frames}{config.num_tokens} by {ways[config.tokenizer]} {where} block {config.loc}"
    if config.back != "none":
        text += f" and each later one, back by {backs[config.back]}"
    return text


def load_checkpoint(folder, config):
    """Return ``(arrays, meta)`` of the run in ``folder``; ``meta["spec"]`` is a DataSpec.

    Raises InputError unless it is a run of the TrainConfig ``config``.
    """
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        raise InputError(
            f"there is no checkpoint in {folder}; if the run ended that early, start it again with the same --out"
        )
    arrays, meta = checkpoint.load(path)
    meta = meta if isinstance(meta, dict) else {}
    if missing := {"config", "images", "classes", "mean", "std", *PROGRESS} - meta.keys():
        raise InputError(f"{path} is not a checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
    if not isinstance(meta["config"], dict) or not isinstance(meta["config"].get("model"), dict):
        raise InputError(f"{path} is not a checkpoint of a training run: its configuration is damaged")
    try:
        saved = asdict(config_of(meta["config"]))
    except (ValueError, TypeError, KeyError):  # of another version: name the fields that differ
        saved = meta["config"]
    checkpoint.compare_config(saved, asdict(config))
    try:
        return arrays, meta | {"spec": _spec_of(meta), "before_spec": "spec" not in meta}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} does not describe its images ({error}); use another checkpoint") from error
