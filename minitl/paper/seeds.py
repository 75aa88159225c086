"""The same training with several seeds, which shows how much of a result is chance.

    seed0/  seed1/  seed2/  command.txt  results.csv

Each run has a folder of its own, so the same call goes on where it was stopped.
"""

import csv
import io
import os
import re
from dataclasses import replace
from pathlib import Path

from .. import data
from ..errors import InputError
from ..train import checkpoint, files
from ..train.config import absolute
from ..train.run import CHECKPOINT, about_images, check_images
from .ablate import Run

OURS = re.compile(r"seed(\d+)|(command\.txt|results\.csv)(\.tmp)?|\..*")  # what else begins with a dot is the system's


def plan(name, config, seeds, folder):
    """A Run called ``name`` for each of ``seeds`` seeds, from that of ``config`` on, in folders below ``folder``.

    Finished runs of other seeds that lie there come first: they count as well. Raises InputError for fewer than one
    seed, for a folder that holds anything else, for runs with other options and for finished ones on other images.
    """
    folder, first = Path(folder), config.seed
    if seeds < 1:
        raise InputError(f"seeds is at least 1, got {seeds}")
    with files.writing(folder):
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if other := [name for name in found if not OURS.fullmatch(name)]:
        raise InputError(f"{folder} holds something else ({', '.join(other[:3])}); several seeds need a new --out")
    config, wanted = absolute(config), range(first, first + seeds)
    there = {int(found[1]) for name in found if (found := OURS.fullmatch(name))[1]}
    runs = {
        seed: Run(name, seed, replace(config, seed=seed), folder / f"seed{seed}") for seed in sorted({*wanted, *there})
    }
    finished = []
    for run in runs.values():
        try:
            if run.result():
                finished.append(run)
        except InputError as error:
            raise InputError(f"{run.folder} does not go with these options; choose another --out: {error}") from error
    if finished:
        about = about_images(data.load(config.dataset, config.data_dir, config.subset)[0])
        for run in finished:
            check_images(run.folder, checkpoint.load(run.folder / CHECKPOINT)[1], about)
    return finished + [runs[seed] for seed in wanted if runs[seed] not in finished]


def begin(folder, command):
    """Make the folder, with the command that a person typed."""
    with files.writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    files.write(Path(folder) / "command.txt", os.fsencode(command + "\n"))


def save(rows, folder):
    """Write the results of Runs to results.csv in ``folder``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(Path(folder) / "results.csv", os.fsencode(text.getvalue()))
