"""The sections of `python -m tests.gpu`, the most valuable first, and the process that runs each of them."""

from functools import partial
from typing import NamedTuple

from . import sections

START_SECONDS = 30  # for a process to start; added to the limit of each section


class Section(NamedTuple):
    """A part of the run: its name, the seconds it should take, its function, and whether the rest needs it."""

    name: str
    seconds: int
    call: callable
    needed: bool = False

    @property
    def limit(self):
        """Seconds after which the section counts as hung."""
        return START_SECONDS + 3 * self.seconds


def steps(model, precision, seconds):
    """Return the processes that measure a training step, minitl's first, as {name: sections}."""
    title = f"{model} {precision}"
    calls = {"minitl": sections.minitl_step, "PyTorch eager": partial(sections.pytorch_step, compiled=False)}
    calls["PyTorch compiled"] = partial(sections.pytorch_step, compiled=True)
    return {
        f"{title}, {label}": [Section(f"{title}, {label}", time, partial(call, model=model, precision=precision))]
        for (label, call), time in zip(calls.items(), seconds, strict=True)
    }


STEPS = [("cifar-r1", "tf32"), ("vit-tiny-tl", "tf32"), ("cifar-r1", "bf16")]  # models and precisions to measure
CHECKS = [
    Section("kernels", 15, sections.kernels_equal_their_references),
    Section("products fp32", 4, partial(sections.products_equal_numpys, "fp32"), needed=True),
    Section("products tf32", 2, partial(sections.products_equal_numpys, "tf32"), needed=True),
    Section("products bf16", 2, partial(sections.products_equal_numpys, "bf16")),
    Section("attention", 3, sections.attention_equals_the_cpus),
    Section("sums", 5, sections.sums_are_the_same_each_time),
    Section("captured tiny fp32", 6, partial(sections.captured_tiny, "fp32"), needed=True),
    Section("captured tiny tf32", 3, partial(sections.captured_tiny, "tf32"), needed=True),
    Section("captured tiny bf16", 3, partial(sections.captured_tiny, "bf16")),
    Section("captured cifar-r1", 12, sections.captured_r1),
    Section("captured Muon", 5, sections.captured_muon),
    Section("augmentation", 8, sections.augmentation_equals_the_cpus),
    Section("training on images", 10, partial(sections.a_run_equals_the_cpus, "images")),
    Section("training on clips", 15, partial(sections.a_run_equals_the_cpus, "clips")),
    Section("resuming", 4, sections.a_run_resumes),
    Section("a batch too large", 3, sections.full_memory_raises),
]
# process: its sections. PyTorch compiles in the background during the checks; the other processes have the GPU alone
PLAN = {
    "checks": CHECKS,
    "memory and rates": [
        Section("memory", 5, sections.replays_leave_memory_constant),
        Section("rates", 5, sections.rates),
        Section("kernels of cifar-r1 tf32", 5, partial(sections.kernels_of_a_step, "tf32")),
        Section("products of cifar-r1 tf32", 3, partial(sections.products_of_a_step, "tf32")),
        Section("kernels of cifar-r1 bf16", 5, partial(sections.kernels_of_a_step, "bf16")),
        Section("products of cifar-r1 bf16", 3, partial(sections.products_of_a_step, "bf16")),
    ],
    **steps(*STEPS[0], seconds=(20, 15, 45)),
    **steps(*STEPS[1], seconds=(12, 12, 30)),
    **steps(*STEPS[2], seconds=(20, 15, 45)),
    "loop": [Section("loop of cifar-r1", 20, sections.loop)],
    "ops": [Section("op tests", 60, sections.op_tests)],
}
