"""The shape of the package: floors whose imports point downward, files that stay short, a light ``import minitl``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minitl
from minitl import OPS

PACKAGE = Path(minitl.__file__).parent
FLOORS = [  # a file imports, early or late, only from the floors below its own
    ["errors"],
    ["backend"],
    ["autograd"],
    ["ops.basic", "ops.activations", "ops.linear", "ops.noise", "ops.norm", "ops.conv", "ops.losses", "ops.recompute"],
    ["ops.attention"],
    ["ops"],
    ["gradcheck", "optim", "plug", "fast", "paper"],
    ["fast.cpu", "fast.cuda.graph"],
    ["fast.cuda.kernels"],
    ["fast.cuda.gemm"],
    ["fast.cuda.overrides", "fast.cuda.adamw", "fast.cuda.augment"],
    ["fast.cuda"],
    ["nn.module", "nn.spec"],
    ["nn.layers"],
    ["nn.transformer", "nn.reduce"],
    ["nn.tokenlearner"],
    ["nn.baselines"],
    ["nn.vit", "nn.bottleneck"],
    ["nn"],
    ["fast.threads", "flops", "interop", "metrics"],
    ["data.dataset"],
    ["data.clutter", "data.images", "data.loader", "data.transforms", "data.augment"],
    ["data.actors", "data.cifar", "data.policies"],
    ["data"],
    [""],  # minitl itself
    ["train.config", "train.files", "train.pictures", "train.activations"],
    ["train.augmentation", "train.checkpoint", "train.presets", "train.step"],
    ["train.evaluate"],
    ["train.run"],
    ["train.predict"],
    ["train", "teach"],
    ["paper.ablate", "paper.fewshot", "paper.tables"],
    ["paper.seeds"],
    ["teach.source"],
    ["teach.submission", "teach.gradebook", "teach.worker"],
    ["teach.core"],
    ["teach.trial", "teach.outputs", "teach.handout"],
    ["teach.course"],
    ["cli"],
    ["__main__"],
]
LIGHT = ["PIL", "cupy", "matplotlib", "pooch", "safetensors", "threadpoolctl", "torch", "tqdm", "tyro"]
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """``minitl/nn/vit.py`` -> "nn.vit", ``minitl/nn/__init__.py`` -> "nn"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


def imports(path):
    """The files of the package that a file imports, anywhere in it, also by ``import_module`` of a string."""
    found, here = set(), path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["minitl", *here[: len(here) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            assert node.args and isinstance(node.args[0], ast.Constant), f"{path}: an import that cannot be followed"
            found.add(node.args[0].value)
    names = {name.removeprefix("minitl").removeprefix(".") for name in found if name.split(".")[0] == "minitl"}
    return {name if name in NAMES else name.rpartition(".")[0] for name in names}


def test_every_file_has_a_floor():
    assert sorted(name for floor in FLOORS for name in floor) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_downward(name):
    """So there is no circle, not by late imports either."""
    height = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    for target in imports(NAMES[name]):
        assert height[target] < height[name], f"{name} imports {target}"


def test_imports_are_seen():
    """The test above is worth nothing if it misses an import."""
    assert {"autograd", "backend"} <= imports(NAMES["ops.norm"])
    assert {"ops", "nn.layers"} <= imports(NAMES["nn.tokenlearner"])
    assert "fast.cuda" in imports(NAMES["nn.module"])  # a late one, by import_module
    assert "fast.cuda" in imports(NAMES["train.step"])  # and one inside a function


def lines(*names):
    """Lines of files, and of all files of folders."""
    paths = [path for name, path in NAMES.items() if any(name == n or name.startswith(f"{n}.") for n in names)]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_there_is_little_to_read():
    to_read = lines("backend", "errors", "autograd", "ops", "gradcheck", "nn", "optim")
    assert to_read - lines("nn.baselines", "nn.bottleneck", "nn.reduce") <= 2350
    assert lines("autograd") <= 181
    everything = [*FILES, *PACKAGE.rglob("*.cu"), *PACKAGE.rglob("*.cuh")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in everything) - lines("teach") <= 10_570
    assert lines("teach") <= 1_600


LONGEST = {"softmax": 16, "layer_norm": 24, "gelu": 24}  # lines with decorator and docstring; 34 for all others


@pytest.mark.parametrize("name", OPS)
def test_an_op_fits_on_a_screen(name):
    """With every helper that only it uses."""
    for path in (PACKAGE / "ops").glob("*.py"):
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if name not in functions:
            continue
        op = functions[name]
        assert [ast.unparse(d) for d in op.decorator_list] == ["op"] and ast.get_docstring(op)
        used = {fn: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} for fn, node in functions.items()}
        alone, more = set(), {name}
        while more:
            alone |= more
            more = {fn for fn in functions if alone & (users := {o for o in used if fn in used[o]}) and users <= alone}
            more -= alone
        size = sum(functions[fn].end_lineno - functions[fn].lineno + 1 for fn in alone) + len(op.decorator_list)
        assert size <= LONGEST.get(name, 34), alone
        return
    pytest.fail(f"{name} is not in minitl/ops")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cli"])
def test_only_the_command_line_prints(name):
    calls = [node for node in ast.walk(ast.parse(NAMES[name].read_text())) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not lines, f"print on lines {lines}"


def test_public_names():
    wanted = "Tensor tensor no_grad plain plug seed OPS ops nn optim data check_gradients check_module"
    assert set(minitl.__all__) >= set(wanted.split())
    missing = [name for name in minitl.__all__ if not hasattr(minitl, name)]
    assert not missing, f"minitl.__all__ promises {missing}"


def test_import_is_light():
    """NumPy alone, also where the others are installed."""
    code = f"import sys, minitl; print([name for name in {LIGHT} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
