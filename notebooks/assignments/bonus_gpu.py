# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bonus · CIFAR-10 in ten minutes on a GPU
#
# Reach the best accuracy on CIFAR-10 that you can in ten minutes of training, with TokenLearner, and find out what
# TokenLearner itself is worth: a *twin* with the same recipe, the same ten minutes and the same care keeps all tokens.
#
# | | |
# |---|---|
# | **Points** | 10 for a written report, none by checks and none for the accuracy itself |
# | **Time** | open; the GPU works for about half an hour for each complete comparison |
# | **You need** | lesson 11 of the course; an NVIDIA GPU; minitl with CuPy, by its extra `cuda12` or `cuda13` |
#
# An honest comparison may well say that TokenLearner is worth nothing here, or less. Such a report can have all points.
#
# The first training fetches CIFAR-10 (162 MB). Everything can be read, and the recipes compared on paper, without
# a GPU; the cells that train then say in one sentence what is missing.

# %%
import csv
from dataclasses import replace
from pathlib import Path

import lesson

from minitl import flops, nn
from minitl.backend import cuda_problem
from minitl.train import TrainConfig, resume, start
from minitl.train.presets import preset

# %% [markdown]
# ## Your recipe
#
# `my_recipe` returns the configuration of your run with TokenLearner. `minitl train --help` lists all options, and
# `minitl/train/presets.py` has recipes to start from. Leave the data set at `"cifar10"` and keep `tokenizer="learner"`.
# The cells below set the time and the GPU.
#
# `MINUTES` is the time of each run, 10 in the end, and 1 or 2 to try something. With 0 nothing is trained. A run that
# exists in the folder `runs` is not made again, and one that was stopped goes on; delete its folder when you change the
# recipe. Set `MINUTES` back to 0 before you hand in.


# %% answer="bonus-recipe"
MINUTES = 0
SEEDS = (0,)


def my_recipe():
    """Return a TrainConfig for CIFAR-10 with TokenLearner; a precision other than "fp32" needs device="cuda"."""
    ### BEGIN SOLUTION
    return replace(preset("cifar-r1-muon"), precision="bf16", device="cuda")
    ### END SOLUTION


# %% [markdown]
# ## The twins
#
# Each twin differs from your recipe in one thing, how the tokens become fewer: `all tokens` keeps them all, and `grid`
# takes means over the cells of a grid, as many as you have tokens. The number of epochs follows from the time, so a
# cheaper model makes more of them. This is the point of having fewer tokens, and it is part of the comparison.

# %%
recipe = replace(my_recipe(), minutes=float(MINUTES), device="cuda")
assert isinstance(recipe, TrainConfig) and recipe.dataset == "cifar10", "my_recipe returns a TrainConfig for cifar10"
assert recipe.model.tokenizer == "learner", f"the recipe uses TokenLearner, not {recipe.model.tokenizer!r}"
kinds = {"TokenLearner": "learner", "all tokens": "none", "grid": "pool"}
recipes = {name: replace(recipe, model=replace(recipe.model, tokenizer=kind)) for name, kind in kinds.items()}
for name, config in recipes.items():
    cost = flops.total(flops.count(config.model, nn.DataSpec((32, 32), 3, 10)))
    print(f"{name:12} {cost.macs / 1e6:6.1f} million multiply-adds per image, {cost.params / 1e6:.2f} million weights")


# %%
def train(name, seed):
    """Train to the end, or go on with a run that was stopped, and print the accuracy of each evaluation."""
    folder = Path("runs") / f"{name.replace(' ', '-')}-{MINUTES}min-seed{seed}"
    config = replace(recipes[name], seed=seed)
    trainer = resume(folder) if folder.exists() else start(config, folder)
    print(trainer.describe())
    trainer.fit(on_epoch=lambda row: print(f"{name}, epoch {row['epoch']}: test accuracy {row['test_accuracy']:.4f}"))


problem = cuda_problem()
for seed in SEEDS if MINUTES and not problem else ():
    for name in recipes:
        train(name, seed)
if problem:
    print("Nothing is trained:", problem)
elif not MINUTES:
    print("Nothing is trained: MINUTES is 0.")

# %% [markdown]
# ## The results
#
# The accuracy of a run is that of its *last* evaluation. The best of many evaluations on the test images would be
# chosen by the test images.

# %%
runs = {}
for path in sorted(Path("runs").glob("*-seed*/metrics.csv")):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    if rows:
        runs[path.parent.name] = [[float(row[key]) for row in rows] for key in ("epoch", "seconds", "test_accuracy")]
print("| run | epochs | seconds | test accuracy |\n|---|---|---|---|")
for name, (epochs, seconds, accuracy) in runs.items():
    print(f"| {name} | {epochs[-1]:.0f} | {seconds[-1]:.0f} | {accuracy[-1]:.4f} |")
if runs:
    lesson.curves(
        {name: (seconds, accuracy) for name, (_, seconds, accuracy) in list(runs.items())[:6]},
        "seconds",
        "test accuracy",
        "Test accuracy against time, a line for each of up to six runs.",
    )

# %% [markdown]
# ## The report
#
# **Part 1, what you tried** (3 points), at most half a page. What did you change in the recipe, in which order, and
# what did each change bring? Give numbers, also of changes that did not help. Say which card you used.

# %% [markdown] written="bonus-tried" points=3
# No model answer: the work is the student's own. A good report names the card, the start (such as cifar-r1-muon as it
# is), and a list of changes with the accuracy before and after each, made one at a time.
#
# Rubric: 1 point for single changes with numbers, so that a reader could repeat them; 1 point for at least one change
# that did not help, with its number; 1 point for a reason of each change that was kept.

# %% [markdown]
# **Part 2, what TokenLearner is worth** (4 points), at most half a page. Paste the table above, for at least two seeds.
# What do the twins reach in the same time, and in how many epochs? How large is the difference between two seeds? State
# what follows from these numbers, and what does not.

# %% [markdown] written="bonus-worth" points=4
# No model answer, as the numbers depend on the card and the recipe. A model with fewer tokens makes more epochs in ten
# minutes; it can gain or lose by that. If the twins differ by less than two seeds of one model do, nothing can be said
# about which of them is better.
#
# Rubric: 1 point for the table with two seeds of all three models at ten minutes; 1 point for epochs and cost as an
# explanation; 1 point for the comparison with the grid, which has as few tokens and learns none; 1 point for a
# conclusion that the difference between seeds allows.

# %% [markdown]
# **Part 3, how honest the comparison is** (3 points), 5 to 8 sentences. Your recipe was tuned with TokenLearner. What
# may have favored it over its twins, and what did you do, or would you do, about that? Which numbers did you look at
# while choosing, and what does this mean for the accuracy that you report?

# %% [markdown] written="bonus-honest" points=3
# Learning rate, regularization and the number of blocks were chosen where TokenLearner does well; the twin should get
# the same number of tries, at least over the learning rate. All choices were made by the accuracy on the test images,
# which therefore is a little too high; a part of the training images should have been kept for choosing, and the test
# images used once. Clip, warm-up and EMA also act differently in runs of more or fewer steps.
#
# Rubric: 1 point for "the twin got fewer tries" with what was or would be done; 1 point for "chosen on the test images,
# so too high", or for a split of their own; 1 point for one more difference that is named and judged.

# %% [markdown]
# ## Before you hand in
#
# 1. `MINUTES` is 0. *Kernel → Restart and run all*: the table has your runs.
# 2. All three parts of the report are there, with the table pasted into part 2.
# 3. The file is still called `bonus_gpu.ipynb`. Hand in this file alone.
