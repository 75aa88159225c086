"""The same training with several seeds, which shows how much of a result is chance.

    seed0/  seed1/  seed2/  command.txt  results.csv

Each run has a folder of its own, so the same call continues where it was stopped.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from .. import data
from ..errors import InputError
from ..train import files
from ..train.config import absolute
from ..train.run import about_images, check_images, load_checkpoint
from .ablate import Run

OURS = re.compile(r"seed(0|[1-9]\d*)|(command\.txt|results\.csv)(\.tmp)?|\..*")  # other dot files are the system's


def plan(name, config, seeds, folder):
    """Return Runs called ``name`` for ``seeds`` consecutive seeds, starting with that of ``config``, below ``folder``.

    Finished runs of other seeds in that folder come first and count as well. Raises InputError for fewer than one
    seed, for a folder that holds anything else, for runs with other options and for finished ones on other images.
    """
    folder, first = Path(folder), config.seed
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    with files.writing(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if other := [entry for entry in names if not OURS.fullmatch(entry)]:
        raise InputError(f"{folder} holds something else ({', '.join(other[:3])}); several seeds need a new --out")
    config, wanted = absolute(config), range(first, first + seeds)
    present = {int(match[1]) for entry in names if (match := OURS.fullmatch(entry))[1]}
    runs = {
        seed: Run(name, seed, replace(config, seed=seed), folder / f"seed{seed}")
        for seed in sorted({*wanted, *present})
    }
    finished = []
    for run in runs.values():
        try:
            if run.result():
                finished.append(run)
        except InputError as error:
            raise InputError(f"{run.folder} does not fit this command; choose another --out: {error}") from error
    if finished:
        about = about_images(data.load(config.dataset, config.data_dir, config.subset)[0])
        for run in finished:
            check_images(run.folder, load_checkpoint(run.folder, run.own_config())[1], about)
    return finished + [runs[seed] for seed in wanted if runs[seed] not in finished]


def begin(folder, command):
    """Make the folder and keep the command as typed."""
    with files.writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    files.write(Path(folder) / "command.txt", os.fsencode(command + "\n"))
