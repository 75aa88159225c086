"""The shape of the package: imports point downward, files stay short, and ``import minitl`` stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minitl
from minitl import OPS

PACKAGE = Path(minitl.__file__).parent
README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (`minitl/.+?) \| (.+) \|$", README, re.M))  # of the table of the files, {files: what}
LAYERS = [*re.findall(r"(\w+)(?:/|\.py)`", " ".join(ROWS)), "__main__"]  # a file imports from earlier ones only


def order(folder):
    """In which the table names the files of a folder."""
    words = re.findall(r"\w+", ROWS[f"`minitl/{folder}/`"])
    return [word for word in words if (PACKAGE / folder / f"{word}.py").exists()]


WITHIN = {  # the same for the files of one folder, where they use one another
    "ops": order("ops"),
    "cuda": ["kernels", "reference", "graph", "gemm", "overrides", "adamw"],
    "nn": order("nn"),
}
CORE = {"backend", "autograd", "ops", "nn", "optim", "checkpoint"}
LIGHT = ["PIL", "cupy", "matplotlib", "safetensors", "threadpoolctl", "torch", "tqdm", "tyro"]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path):
    """``minitl/nn/vit.py`` -> ("nn", "vit")"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path):
    """What the file imports from the package, anywhere in it: [("ops", "linear"), ...]."""
    here = path.relative_to(PACKAGE).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [tuple(parts[1:]) for parts in names if parts[0] == "minitl"]
        elif isinstance(node, ast.ImportFrom):
            parts = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                parts = here[: len(here) - node.level + 1] + parts
            elif parts[0] != "minitl":
                continue
            else:
                parts = parts[1:]
            found += [(*parts, alias.name) for alias in node.names]
    return found


def id_of(path):
    return ".".join(name_of(path)) or "minitl"


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=id_of)
def test_imports_point_downward(path):
    layer, *rest = name_of(path)
    assert layer in LAYERS, f"{layer} has no place in the README's table, {LAYERS}"
    for target in imports(path):
        if target[:1] != (layer,):
            assert target and target[0] in LAYERS[: LAYERS.index(layer)], f"{id_of(path)} imports {'.'.join(target)}"
        elif rest and layer in WITHIN:
            order = WITHIN[layer]
            assert order.index(target[1]) < order.index(rest[0]), f"{id_of(path)} imports {'.'.join(target)}"


def test_imports_are_seen():
    """The test above is worth nothing if it misses an import."""
    assert ("autograd", "op") in imports(PACKAGE / "ops" / "norm.py")
    assert ("nn", "layers", "Conv2d") in imports(PACKAGE / "nn" / "tokenlearner.py")
    assert ("ops",) in imports(PACKAGE / "nn" / "layers.py")


def test_the_core_is_small():
    """The core is what computes and learns; checking, training, counting, data and commands are tools."""
    sizes = {id_of(p): len(p.read_text().splitlines()) for p in FILES if name_of(p)[:1] and name_of(p)[0] in CORE}
    assert sum(sizes.values()) <= 3000, sizes
    assert sizes["autograd"] <= 150


@pytest.mark.parametrize("name", OPS)
def test_an_op_fits_on_a_screen(name):
    """45 lines with its decorator and its docstring."""
    for path in (PACKAGE / "ops").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                assert [ast.unparse(d) for d in node.decorator_list] == ["op"] and ast.get_docstring(node)
                assert node.end_lineno - node.decorator_list[0].lineno + 1 <= 45
                return
    pytest.fail(f"{name} is not in minitl/ops")


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) != ("cli",)], ids=id_of)
def test_only_the_command_line_prints(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not lines, f"print on lines {lines}"


def test_public_names():
    assert set(minitl.__all__) >= {
        "OPS",
        "Tensor",
        "check_gradients",
        "check_module",
        "nn",
        "no_grad",
        "ops",
        "seed",
        "tensor",
    }
    missing = [name for name in minitl.__all__ if not hasattr(minitl, name)]
    assert not missing, f"minitl.__all__ promises {missing}"


def test_import_is_light():
    """NumPy alone, also where the others are installed."""
    code = f"import sys, minitl; print([name for name in {LIGHT} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
