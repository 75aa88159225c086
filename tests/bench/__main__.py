"""``python -m tests.bench``: speed and memory beside PyTorch's, or how they grow."""

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm
from tyro.conf import Positional

from minitl.backend import cuda_problem
from minitl.cli import exit_status
from minitl.errors import InputError
from minitl.fast.threads import cores
from minitl.train import files
from minitl.train.pictures import png

from . import measure, measure_cuda, model, report


@dataclass(frozen=True)
class BenchOptions:
    names: Positional[tuple[str, ...]] = ()
    """models to measure, by default all: vit-tiny, vit-tiny-tl, vit-384, vit-tl-384, cifar-cpu, video-tl, bottleneck;
    on a GPU vit-tiny, vit-tiny-tl, cifar-r1"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to compute"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """precision on a GPU, as for `minitl train`"""
    threads: int | None = None
    """threads of each framework; by default one for each core, at most 8, as in `minitl train`"""
    ops: bool = False
    """measure the layers of vit-tiny-tl, and the share of each op in a training step"""
    scale: bool = False
    """measure time and memory of minitl alone against batch size, number of tokens, depth and place of TokenLearner"""
    model: bool = False
    """with --device cuda, but needs no GPU: count launches, bytes and multiply-adds of a training step by kernel, and
    estimate its time on an H100 and an H200; by default for vit-tiny-tl in tf32 and cifar-r1 in tf32 and bf16"""
    quick: bool = False
    """tiny models and few rounds, to see that everything runs"""
    json: bool = False
    """print JSON"""
    out: Path | None = None
    """folder for the picture; by default runs/bench, or runs/bench-quick with --quick"""


def check_folder(path):
    """Raise InputError unless files can be written in the folder ``path``. A missing folder is not created."""
    with files.writing(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            if missing:
                path.mkdir(parents=True)
            tempfile.TemporaryFile(dir=path).close()
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def bench(args):
    """Run the benchmark that the command line ``args`` asks for."""
    options = tyro.cli(BenchOptions, prog="python -m tests.bench", args=args)
    if options.ops + options.scale + bool(options.names) > 1:
        raise InputError("choose one: names of models, --ops, or --scale")
    if options.threads is not None and not 1 <= options.threads <= cores():
        raise InputError(f"--threads must be from 1 to {cores()}, the number of cores, got {options.threads}")
    if options.device == "cpu" and options.precision != "fp32":
        raise InputError(f"--precision {options.precision} needs --device cuda; a CPU computes in fp32")
    if options.device == "cpu" and options.model:
        raise InputError("--model counts what a GPU does; add --device cuda")
    if options.device == "cuda":
        if options.ops or options.scale or options.threads:
            raise InputError("--ops, --scale and --threads are for a CPU; omit them with --device cuda")
        if options.model:
            return _estimate(options)
        if problem := cuda_problem():
            raise InputError(f"device cuda cannot be used: {problem}")
        machine, heading = measure_cuda.machine(), report.cuda_heading
        models, run = measure_cuda.MODELS, _bench_cuda
    else:
        machine, heading = measure.machine(options.threads), report.heading
        models = measure.MODELS
        run = _bench_ops if options.ops else _bench_scale if options.scale else _bench_models
    for name in options.names:
        measure.lookup(name, models=models)  # raises InputError for an unknown one
    out = options.out or Path("runs") / ("bench-quick" if options.quick else "bench")
    check_folder(out)  # now, because measuring takes minutes
    write = (lambda text: None) if options.json else tqdm.write  # above the progress bar
    write(heading(machine) + "\n")
    with tqdm(bar_format="{desc} {elapsed}", leave=False, disable=None) as bar:
        results, name, figure = run(options, write, bar.set_description_str)
    if options.json:
        print(json.dumps({"machine": machine} | results, indent=1))
    if options.quick:
        write("this was quick: too few steps of too small models for meaningful figures")
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / name, png(figure))
    print(f"wrote {out / name}", file=sys.stderr if options.json else sys.stdout)


def _estimate(options):
    rows = []
    for row in model.costs(options.names, options.precision, options.quick):
        rows.append(row)
        if not options.json:
            print(report.cost_table(row) + "\n")
    if options.json:
        print(json.dumps({"models": rows}, indent=1))


def _bench_models(options, write, progress):
    write(report.head())
    rows = []
    for row in measure.compare(options.names, options.threads, options.quick, progress):
        write(report.line(row))
        rows.append(row)
    write("\n".join(["", *report.savings(rows, measure.PAIRS)]))
    return {"models": rows}, "bench.png", report.picture(rows)


def _bench_ops(options, write, progress):
    rows, shares = measure.by_op(options.threads, options.quick, progress)
    write(report.by_op_table(rows, shares) + "\n")
    return {"layers": rows, "ops": shares}, "ops.png", report.by_op_picture(rows)


def _bench_scale(options, write, progress):
    rows = measure.scale(options.threads, options.quick, progress)
    write(report.scale_table(rows) + "\n")
    return {"scale": rows}, "scale.png", report.scale_picture(rows)


def _bench_cuda(options, write, progress):
    write(report.cuda_head())
    rows = []
    for row in measure_cuda.compare(options.names, options.precision, options.quick, progress):
        write(report.cuda_line(row))
        (row["estimate"],) = model.costs([row["name"]], options.precision, options.quick)
        rows.append(row)
    write("\n".join(["", *report.cuda_notes(rows)]))
    for row in rows:
        write("\n" + report.shares_table(f"{row['name']}, eager", row["ops"], ()))
    return {"models": rows}, "bench-cuda.png", report.cuda_picture(rows)


def main(args=None):
    """Run the benchmark with ``args``, ``sys.argv`` by default; errors are reported as by ``minitl``."""
    with exit_status():
        bench(sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    main()
