"""Wrong answers to A1, mistakes that students make: (name, the answer's cell, the points that it loses by test)."""

ORDER = """
def walk_order(loss):
    found, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            found.append(node)

    visit(loss)
    return found[::-1]
"""
OPS = """
def my_mul(x, z):
    return x * z, lambda dy: (dy * z, dy * x)


def my_matmul(x, W):
    return x @ W, lambda dy: (dy @ W.T, x.T @ dy)
"""
UNBROADCAST = """
def unbroadcast(dy, shape):
    new = dy.ndim - len(shape)
    ones = [i + new for i, size in enumerate(shape) if size == 1]
    return dy.sum(axis=(*range(new), *ones), keepdims=True).reshape(shape)
"""
BACK = """
def walk_back(nodes):
    nodes[0].grad = np.ones_like(nodes[0].data)
    for node in nodes:
        if node.pullback is not None:
            for parent, part in zip(node.parents, node.pullback(node.grad)):
                parent.grad = part if parent.grad is None else parent.grad + part
"""
NUMERIC = """
def numeric_gradient(f, x, h=1e-5):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[i] = h
        grad[i] = (f(x + unit) - f(x - unit)) / (2 * h)
    return grad
"""
QUEUE = """
def walk_order(loss):
    found = [loss]
    for node in found:
        found += [parent for parent in node.parents if parent not in found]
    return found
"""

wrong = [
    ("breadth first", {"a1-order": QUEUE}, {"a1-order-1": 2, "a1-order-2": 1}),
    (
        "a node that is used twice is listed twice",
        {"a1-order": ORDER.replace("if node not in seen", "if True")},
        {"a1-order-1": 2, "a1-order-2": 1},
    ),
    ("the order not reversed", {"a1-order": ORDER.replace("found[::-1]", "found")}, {"a1-order-1": 2, "a1-order-2": 1}),
    ("dW transposed", {"a1-ops": OPS.replace("x.T @ dy", "dy.T @ x")}, {"a1-ops-1": 2, "a1-ops-2": 2}),
    (
        "the transpose of x forgotten where it is square",
        {"a1-ops": OPS.replace("x.T @ dy", "(x if len(x) > 1 else x.T) @ dy")},
        {"a1-ops-2": 2},
    ),
    (
        "in place",
        {"a1-ops": OPS.replace("lambda dy: (dy * z, dy * x)", "lambda dy: (dy * z, np.multiply(dy, x, out=dy))")},
        {"a1-ops-2": 2},
    ),
    ("float64", {"a1-ops": OPS.replace("x * z,", "x * z * np.float64(1),")}, {"a1-ops-2": 2}),
    (
        "axes of length 1 forgotten",
        {"a1-unbroadcast": UNBROADCAST.replace("*ones", "")},
        {"a1-unbroadcast-1": 2, "a1-unbroadcast-2": 2},
    ),
    (
        "mean in place of sum",
        {"a1-unbroadcast": UNBROADCAST.replace("dy.sum", "dy.mean")},
        {"a1-unbroadcast-1": 2, "a1-unbroadcast-2": 2},
    ),
    (
        "axes of length 1 only without new ones",
        {"a1-unbroadcast": UNBROADCAST.replace("size == 1", "size == 1 and not new")},
        {"a1-unbroadcast-2": 2},
    ),
    (
        "gradient overwritten",
        {"a1-accumulate": BACK.replace("part if parent.grad is None else parent.grad + part", "part")},
        {"a1-accumulate-1": 2, "a1-accumulate-2": 1},
    ),
    (
        "added in place",
        {
            "a1-accumulate": BACK.replace(
                "parent.grad = part if parent.grad is None else parent.grad + part",
                "if parent.grad is None:\n                    parent.grad = part\n                else:\n"
                "                    parent.grad += part",
            )
        },
        {"a1-accumulate-1": 2, "a1-accumulate-2": 1},
    ),
    (
        "one-sided difference",
        {"a1-numeric": NUMERIC.replace("f(x - unit)", "f(x)").replace("(2 * h)", "h")},
        {"a1-numeric-1": 1, "a1-numeric-2": 1},
    ),
    ("divided by h, not 2 h", {"a1-numeric": NUMERIC.replace("(2 * h)", "h")}, {"a1-numeric-1": 1, "a1-numeric-2": 1}),
    (
        "x changed in place",
        {
            "a1-numeric": NUMERIC.replace(
                "        grad[i] = (f(x + unit) - f(x - unit)) / (2 * h)",
                "        x += unit\n        up = f(x)\n        x -= 2 * unit\n"
                "        grad[i] = (up - f(x)) / (2 * h)\n        x += unit",
            )
        },
        {"a1-numeric-2": 1},
    ),
]
