# %% [markdown]
# # 02 · Forty lines that differentiate
#
# Lesson 01 walked back through a graph of arrays. Here that walk becomes an engine of forty lines. Before you write a
# part, you see what fails without it. Then you read minitl's own engine beside yours, learn to test a gradient so
# that a mistake shows, and train the same network with both engines.
#
# | | |
# |---|---|
# | **Goal** | write an engine for gradients, understand minitl's, and test any gradient |
# | **Time** | 60 minutes to read, 5 seconds to run on two cores of an AMD EPYC |
# | **You need** | [01](01_slope.ipynb): pullbacks, why gradients add, topological order |

# %%
import heapq
import inspect
import itertools
import tracemalloc
from types import SimpleNamespace

import lesson
import numpy as np
from checks import check

import minitl
from minitl import autograd, check_gradients, gradcheck, no_grad, ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## An op is a function of arrays
#
# In lesson 01 every function took arrays out of nodes and put its result into a new node. That can be written once.
# From now on an **op** is a plain function of arrays that returns its value and its pullback, which is always called
# `backward`. The decorator `op` makes it accept Tensors. A `Tensor` is the node of lesson 01, and `data` is its value.
# An input may also be an array or a number; it gets no gradient. With one input, the pullback may return the gradient
# itself in place of a tuple.

# %%
order = itertools.count()


class Tensor:
    """An array `data` that knows how it was made: from `parents`, and with which `pullback`."""

    def __init__(self, data, parents=(), pullback=lambda dy: ()):
        self.data, self.grad, self.order = data, None, next(order)
        self.parents, self.pullback = parents, pullback


def op(fn):
    """Turn `fn(*arrays) -> y, backward` into a function of Tensors."""

    def call(*inputs):
        y, backward = fn(*(x.data if isinstance(x, Tensor) else x for x in inputs))
        return Tensor(y, inputs, backward)

    return call


# %%
edges = [("Tensors\na, b", "arrays"), ("arrays", "fn"), ("fn", "value y"), ("fn", "backward")]
edges += [("value y", "Tensor", "data"), ("backward", "Tensor", "pullback")]
seen = "op takes arrays out of Tensors, calls fn, and makes a new Tensor of the value y and of backward."
lesson.graph(edges, alt=seen, size=(8, 1.2))


# %%
@op
def add(a, b):
    return a + b, lambda dy: (dy, dy)


@op
def mul(a, b):
    return a * b, lambda dy: (b * dy, a * dy)


@op
def matmul(a, b):
    return a @ b, lambda dy: (dy @ b.T, a.T @ dy)


@op
def tanh(x):
    y = np.tanh(x)
    return y, lambda dy: (1 - y * y) * dy


@op
def mean(x):
    return x.mean(), lambda dy: np.broadcast_to(dy / x.size, x.shape)


# %% [markdown]
# The pullback of `matmul` has the two products of lesson 01, $dw = X^\top dy$ and $dX = dy\, w^\top$, for a $w$ of
# several columns. Lesson 03 derives them with all their axes.
#
# ## Failure 1: a gradient of the wrong shape
#
# NumPy repeats arrays to make them fit, which is called *broadcasting*. In $y = x + b$ with $x$ of shape $(4, 3)$ and
# $b$ of shape $(3,)$, every row gets the same $b$. But `add` returns $dy$ for both inputs:

# %%
x, b = rng.standard_normal((4, 3)), np.zeros(3)
dy = np.arange(12.0).reshape(4, 3)
_, db = add(x, b).pullback(dy)
print("b", b.shape, "  db", db.shape, "  b after a step", (b - 0.1 * db).shape)

# %% [markdown]
# There is no error. After one step of gradient descent, $b$ has become a matrix. The cure is known from lesson 01:
# $b_j$ is used in four places, so its gradient is the sum over them, $db_j = \sum_i dy_{ij}$. In general, **sum over
# the axes along which the array was repeated**. There are two kinds: axes that NumPy added in front, and axes of
# length 1 that it stretched.


# %%
def unbroadcast(grad, shape):
    """Sum `grad` over the axes along which an array of `shape` was repeated to fit."""
    if grad.shape == shape:
        return grad
    new = grad.ndim - len(shape)
    axes = tuple(i for i in range(grad.ndim) if i < new or shape[i - new] == 1)
    return grad.sum(axes, keepdims=True).reshape(shape)


# %%
row, column = unbroadcast(dy, (3,)), unbroadcast(dy, (4, 1))
assert (row == dy.sum(0)).all() and (column == dy.sum(1, keepdims=True)).all()
panels = {"$dy$ of shape (4, 3)": dy, "sum for shape (3,)": row[None], "sum for shape (4, 1)": column}
seen = "A matrix of 4 rows and 3 columns, the row of its column sums, and the column of its row sums."
lesson.matrices(panels, "column", "row", alt=seen, text="{:.0f}", side=1.8)

# %% [markdown]
# The ops can stay as simple as they are: the engine will call `unbroadcast` for every gradient.
#
# ## Failure 2: recursion
#
# A tensor must wait for all that use it. A common way to find such an order is a function that calls itself: first it
# lists all that a tensor was made from, then the tensor. The walk takes the list from its end.


# %%
def oldest_first(tensor, found):
    for parent in tensor.parents:
        if isinstance(parent, Tensor) and parent not in found:
            oldest_first(parent, found)
    found[tensor] = True  # a dict keeps the order in which its keys came
    return found


y = x = Tensor(np.ones(3))
for _ in range(10_000):
    y = add(y, x)
try:
    oldest_first(y, {})
except RecursionError as error:
    print("RecursionError:", error)

# %% [markdown]
# Python limits how deep calls may be nested. Lesson 01 had no recursion: it collected all nodes, then sorted them from
# the newest to the oldest. One loop can do both. Keep a list of those tensors to which a gradient has come, and always
# visit the newest of them. Everything that uses it is newer and has been visited before, so its gradient is complete.
# In the graph below, after 3 and 2 have been visited, 1 and 0 are waiting. The newest is 1, so `tanh` adds its part to
# `x` before `x` gets its turn.
#
# A **heap** is a list that gives out its smallest entry quickly. Its entries here are pairs `(-order, tensor)`, since
# the newest tensor has the smallest `-order`.

# %%
edges = [("0: x", "1: tanh"), ("1: tanh", "2: add"), ("0: x", "2: add"), ("2: add", "3: mean")]
seen = "x, tanh, add and mean in a row, numbered from 0 to 3, and an arrow from x past tanh to add."
lesson.graph(edges, alt=seen, size=(6.5, 1.1))


# %%
def backward(loss):
    """Add to `grad` of every Tensor how fast the loss grows with each of its entries."""
    loss.grad, heap = np.ones_like(loss.data), [(-loss.order, loss)]
    while heap:
        tensor = heapq.heappop(heap)[1]
        grads = tensor.pullback(tensor.grad)
        grads = grads if isinstance(grads, tuple) else (grads,)
        for parent, grad in zip(tensor.parents, grads, strict=True):
            if isinstance(parent, Tensor):
                grad = unbroadcast(grad, parent.data.shape)
                if parent.grad is None:
                    parent.grad = grad
                    heapq.heappush(heap, (-parent.order, parent))
                else:
                    parent.grad = parent.grad + grad


Tensor.backward, Tensor.__add__, Tensor.__mul__, Tensor.__matmul__ = backward, add, mul, matmul

mean(y).backward()  # through the chain of 10,000 additions
assert np.allclose(x.grad, 10_001 / 3)  # x was used 10,001 times; in a mean of 3 entries each counts a third

# %% [markdown]
# That is the engine: `Tensor`, `op`, `unbroadcast` and `backward`. The name `backward` has two uses, here and in
# minitl: the `backward` of an op is one step, and `loss.backward()` is the walk through the whole graph. Does it agree
# with minitl? The expression below has a product of matrices, broadcasting, and values that are used twice. In minitl,
# a Tensor whose gradient we want says so: `requires_grad=True`.

# %%
x, W, b = rng.standard_normal((4, 3)), rng.standard_normal((3, 3)), rng.standard_normal(3)

yours = [Tensor(a) for a in (x, W, b)]
h = tanh(yours[0] @ yours[1] + yours[2])
mean(h * h + yours[0]).backward()

theirs = [minitl.Tensor(a, requires_grad=True) for a in (x, W, b)]
h = ops.tanh(theirs[0] @ theirs[1] + theirs[2])
ops.mean(h * h + theirs[0]).backward()
assert all(np.allclose(a.grad, b.grad) for a, b in zip(yours, theirs, strict=True))

lengths = [len(inspect.getsource(part).splitlines()) for part in (Tensor.__init__, op, unbroadcast, backward)]
print(f"your engine: {sum(lengths)} lines in four functions, and the head of a class")
print(f"autograd.py: {len(inspect.getsource(autograd).splitlines())} lines")
assert sum(lengths) < 40


# %% [markdown]
# ## minitl's engine beside yours
#
# The names in `minitl/autograd.py` are the same. Its additional lines save memory, refuse what would be silently wrong,
# and say in words what the matter is. Here they are, part by part.
#
# **Edges point at nodes.** Your `Tensor` does two things: it holds an array, and it is a node of the graph. minitl
# separates them. A `Tensor` has `data`, `grad`, and the `node` that made it, or none if it is a leaf. A `Node` has the
# pullback and the parents, and no array. The picture after its source is the graph of `y = x + 1` and
# `loss = ops.mean(y)`:


# %%
def source(thing, first, last):
    """Print a part of the source: from the line with one text to the next line with the other."""
    lines = inspect.getsource(thing).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i in range(start, len(lines)) if last in lines[i])
    print("\n".join(lines[start : stop + 1]))


source(autograd.Node, "class Node", "self.name")

# %%
edges = [("Tensor x\na leaf", "Node add"), ("Node add", "Node mean"), ("Node mean", "Tensor loss", "made")]
edges += [("Node add", "Tensor y", "made")]
seen = "Nodes for add and mean in a row; the Tensor y hangs at the node add, beside the way from x to the loss."
lesson.graph(edges, alt=seen, size=(6.5, 1.4))

# %% [markdown]
# The way from the loss back to `x` does not lead through `y`. As soon as nobody uses `y`, its array is freed, unless a
# pullback needs it.
#
# **The first gradient is borrowed.** Your engine makes a new array at each addition. Adding in place would avoid that,
# but `add` returns the same array twice, and whoever changes one gradient then changes both. minitl keeps the first
# gradient as it is, makes a new array at the second, and adds in place from the third on, for then the array is its
# own. Only a leaf gets a copy at once. (`array_module` is NumPy, or CuPy on a GPU.)

# %%
_, add_backward = autograd.PLAIN["add"](np.zeros(3), np.zeros(3))  # the function of arrays
da, db = add_backward(np.ones(3))
da += 5  # a gradient from another use of a
print("db", db, "instead of [1. 1. 1.]\n")
assert da is db

source(autograd.Tensor.backward, "def accumulate", "owned.add")

# %% [markdown]
# `pending` holds the gradients of nodes until they are handed on. Only leaves keep theirs, in `grad`, and there the
# gradients of two losses add up until `zero_grad` clears them.
#
# **Pullbacks are dropped after use**: the last line below. With them go the arrays that they kept, so memory becomes
# free during the walk. A second call on the same graph is then impossible, and minitl says so. In your engine all
# tensors in the middle still have their gradients, so a second call does not put them on the heap again, and `x` gets
# nothing more. (The walk of lesson 01 visited them all, and gave too much.) Some lines are for speed: a gradient may
# also be a function, called only if somebody needs it, and an `Accumulator` adds itself to the sum so far.

# %%
source(autograd.Tensor.backward, "while heap", "node.parents, node.pullback =")
print()
engines = {
    "yours": (Tensor, op, SimpleNamespace(add=add, matmul=matmul, tanh=tanh, mean=mean)),
    "minitl": (lambda array: minitl.Tensor(array, requires_grad=True), autograd.op, ops),
}
for name, (leaf, _, kit) in engines.items():
    x = leaf(np.ones(3))
    loss = kit.mean(x * x)
    loss.backward()
    once = x.grad
    try:
        loss.backward()
        print(f"{name}: after two calls {x.grad / once} times the gradient; 2 would be right")
    except RuntimeError as error:
        print(f"{name}: {error}")


# %%
def memory(leaf, op, kit):
    """Megabytes in use at each of 20 layers tanh(x + 0.1), on the way forward and on the way back."""
    used = []

    def probe(x):  # an op that changes nothing: y = x, dx = dy
        def note(dy=None):
            used.append(tracemalloc.get_traced_memory()[0] / 1e6)
            return dy

        note()  # on the way forward
        return x, note  # the pullback: on the way back

    x = leaf(np.ones(100_000))  # 0.8 MB
    tracemalloc.start()
    for _ in range(20):
        x = op(probe)(kit.tanh(kit.add(x, 0.1)))
    kit.mean(x).backward()
    tracemalloc.stop()
    return used


# %%
used = {name: memory(*engine) for name, engine in engines.items()}
seen = "Memory rises on the way forward, twice as fast with your engine; on the way back only minitl's falls."
lesson.curves({name: (range(1, 41), u) for name, u in used.items()}, "layer, forward then back", "MB in use", alt=seen)
assert max(used["minitl"]) < 0.6 * used["yours"][19] and used["minitl"][-1] < 5 < used["yours"][-1]

# %% [markdown]
# This is the memory that the two engines use for twenty layers $x \leftarrow \tanh(x + 0.1)$. On the way forward minitl
# keeps one array for each layer, the $\tanh$, which its pullback needs. Your engine keeps the sum as well, and on the
# way back also every gradient. In the figure, 1 to 20 is the way forward and 21 to 40 the way back.
#
# **Not everything is recorded.** Only what depends on a leaf with `requires_grad=True`, such as a weight, becomes part
# of the graph. Under `no_grad`, when you only want answers, nothing does.
#
# **Messages** name the op and the shapes that met. `unbroadcast` is like yours, with a message. (There is more in
# `autograd.py`: some ops have several forms, and the fastest is chosen. Skip that until you are curious.)
#
# One mistake is noticed by neither engine. A pullback keeps arrays, not copies of them. So **never change an array in
# place between the computation of the loss and `backward`**:

# %%
source(autograd.op, "out = Tensor(value)", "return out")
with no_grad():
    print("\nunder no_grad:", ops.mean(x * x))

try:
    ops.linear(minitl.Tensor(np.ones((2, 3))), minitl.Tensor(np.ones((4, 5))))
except ValueError as error:
    print("a message:", error)

x = minitl.Tensor(np.ones(3), requires_grad=True)
loss = (x * x).sum()
x.data *= 10  # x.data = x.data * 10 makes a new array and does no harm
loss.backward()
print("changed in place: dx is", x.grad, "instead of [2. 2. 2.]")

# %% [markdown]
# ## How exact is a measurement?
#
# The referee of lesson 01 has two errors of its own. **Truncation**: the central difference is off by
# $\frac{1}{6} h^2 f'''$. **Rounding**: a float64 has about 16 digits and a float32 about 7, so $f$ is off by up to
# about $\epsilon |f|$, where $\epsilon$ is the distance from 1 to the next number. Division by a small $h$ makes that
# large:
#
# $$\text{error} \approx \tfrac{1}{6} h^2 |f'''| + \frac{\epsilon |f|}{h}$$

# %%
points, steps = rng.random(200), 10.0 ** np.arange(-13, 0.1, 0.25)


def error_of(h, dtype):
    """Mean error of the central difference of sin, computed in one precision."""
    x, h = points.astype(dtype), dtype(h)
    return np.abs((np.sin(x + h) - np.sin(x - h)) / (2 * h) - np.cos(points)).mean()


errors = {dtype.__name__: [error_of(h, dtype) for h in steps] for dtype in (np.float32, np.float64)}
for name, values in errors.items():
    best, eps = steps[np.argmin(values)], np.finfo(name).eps
    print(f"{name}: best h {best:.0e}   cube root of epsilon {eps ** (1 / 3):.0e}   smallest error {min(values):.0e}")
    assert 0.1 < best / eps ** (1 / 3) < 10 and min(values) < eps ** (2 / 3)
print("minitl measures with h =", gradcheck.STEP)

# %%
lines = {name: (steps, values) for name, values in errors.items()}
lines["truncation"] = steps, steps**2 / 6 * np.cos(points).mean()
for name in errors:
    lines[f"rounding, {name}"] = steps, np.finfo(name).eps * np.sin(points).mean() / steps
seen = "Two V-shaped curves, one for each precision: with smaller h the errors first fall, then rise again."
lesson.curves(lines, "step h", "error", alt=seen, xscale="log", yscale="log", ylim=(1e-14, 10))

# %% [markdown]
# On these axes truncation is a straight line of slope 2 and rounding one of slope -1; together they make a V. (In
# float32, below $h = 10^{-8}$, $x + h$ is rounded to $x$, and the measured slope is 0.)
#
# The sum of the two is smallest where its derivative $\frac{1}{3} h |f'''| - \epsilon |f| / h^2$ is 0, that is where
# $h^3 = 3 \epsilon\, |f / f'''|$. So the best $h$ is near the **cube root of** $\epsilon$, and an error of at most
# about $\epsilon^{2/3}$ remains. In float64 a slope can be measured to ten digits or more, in float32 to about five. So
# gradients are checked in float64, even if the network is trained in float32.
#
# ## One number for all entries
#
# `measure` computed the loss twice for each entry. Instead, move all entries at once along a random direction $v$. By
# the chain rule the slope is $\langle dx, v \rangle = \sum_i dx_i v_i$. A wrong $dx$ passes only if its error is
# perpendicular to $v$, which practically never happens.
#
# Another choice is less visible. An op returns an array $y$, and we need a number. Take
# $L = \langle c, y \rangle = \sum_i c_i y_i$ with any array $c$, called the **cotangent**. Then $dy = c$. The easiest
# choice is $c = 1$, the sum.
#
# Here is an op with a mistake, under two choices. A softmax makes of each row positive numbers that add up to 1; lesson
# 04 derives its backward.


# %%
def forgetful_softmax(x):
    """y_i = exp(x_i) / Σ_j exp(x_j),  dx_i = y_i (dy_i - Σ_j dy_j y_j)"""
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, lambda dy: dy - (dy * y).sum(-1, keepdims=True)  # where is the factor y_i?


def two_slopes(fn, x, c, h=1e-5):
    """Slope of Σ c y along a random direction: by the pullback, and by a central difference."""
    v = rng.standard_normal(x.shape)
    _, backward = fn(x)
    (up, _), (down, _) = fn(x + h * v), fn(x - h * v)
    return (backward(c) * v).sum(), (c * (up - down)).sum() / (2 * h)


x = rng.standard_normal((2, 3))
for name, c in {"c = 1": np.ones((2, 3)), "c random": rng.standard_normal((2, 3))}.items():
    by_pullback, measured = two_slopes(forgetful_softmax, x, c)
    print(f"{name:8}   pullback {by_pullback:8.5f}   measured {measured:8.5f}")
    assert np.isclose(by_pullback, measured, atol=1e-8) == (name == "c = 1")

# %% [markdown]
# Under the sum the mistake passes. The entries of a softmax always add up to 1, so their sum has the slope 0, and any
# pullback that turns equal $dy$ into 0 agrees with that. To see it, write the pullback for one row as a matrix,
# $dx = M\, dy$. By the formula in the docstring, the right $M$ has $y_i$ on its diagonal, minus $y_i\, y_j$ everywhere:

# %%
y = ops.softmax(minitl.Tensor(x[0])).data
right = np.diag(y) - np.outer(y, y)
wrong = np.stack([forgetful_softmax(x[0])[1](unit) for unit in np.eye(3)], axis=1)
assert np.allclose(right.sum(1), 0) and np.allclose(wrong.sum(1), 0)
seen = "Two matrices of 3 rows and 3 columns with different entries; in both of them each row adds up to 0."
lesson.matrices({"right $M$": right, "forgetful $M$": wrong}, "entry of dy", "entry of dx", alt=seen, text="{:.2f}")

# %% [markdown]
# Each row of both matrices adds up to 0. An entry of $dx$ is a row times $dy$, so equal $dy$ give 0 in both cases. A
# **random cotangent** tells them apart. `check_gradients` does all of this: float64, a random cotangent, and a random
# direction for each input. It is silent if all is well, and otherwise says where it is not.

# %%
check_gradients(ops.softmax, x)
try:
    check_gradients(autograd.op(forgetful_softmax), x)
except AssertionError as error:
    print(error, "\n")

print(inspect.getdoc(autograd.op))

# %% [markdown]
# From the next lesson on, every op is checked in this way, and made with minitl's decorator: `@op` from
# `minitl.autograd`. Of its rules, printed above, 2 to 5 are those that you have met here. Rule 6 lets a network compute
# in float32 though its gradients were checked in float64.
#
# ## A network
#
# Take two spirals. On which of them does a point $x$ of the plane lie? A network of two layers answers with a number
# that should be $1$ or $-1$. For $B$ points at once and 32 numbers between the layers:
#
# $$\underset{(B,\,1)}{y} = \tanh\bigl(\underset{(B,\,2)}{x}\;\underset{(2,\,32)}{W_1} + \underset{(32)}{b_1}\bigr)\;
# \underset{(32,\,1)}{W_2} + \underset{(1)}{b_2}$$

# %%
B, hidden = 200, 32
t, arm = rng.uniform(0.15, 1, (B, 1)), rng.choice([-1.0, 1.0], (B, 1))
angle = 2 * np.pi * t + np.pi * (arm > 0)
X = t * np.hstack([np.cos(angle), np.sin(angle)]) + 0.03 * rng.standard_normal((B, 2))
start = {
    "W1": 3 * rng.standard_normal((2, hidden)),
    "b1": rng.standard_normal(hidden),
    "W2": rng.standard_normal((hidden, 1)) / hidden**0.5,
    "b2": np.zeros(1),
}


def network(p, x, kit):
    return kit.matmul(kit.tanh(kit.matmul(x, p["W1"]) + p["b1"]), p["W2"]) + p["b2"]


side = np.linspace(-1.2, 1.2, 80)  # 80 x 80 places, for the pictures
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
column, row = np.rint((X.T + 1.2) / 2.4 * 79).astype(int)  # where the points are among them


def areas(p):
    """The answer of the network at each place in middle tones, with the points in black and white."""
    picture = 0.5 * network(p, grid, ops).data.clip(-1, 1).reshape(80, 80)
    picture[row, column] = arm[:, 0]
    return picture


# %%
into = {"matmul 1": "x W1", "add 1": "b1", "matmul 2": "W2", "add 2": "b2"}  # what each op takes beside the last result
edges = [(name, box) for box, names in into.items() for name in names.split()]
edges += itertools.pairwise(["matmul 1", "add 1", "tanh", "matmul 2", "add 2", "loss"])
seen = "The network as a graph: x enters, then come W1, b1, tanh, W2 and b2, and the loss at the end."
lesson.graph(edges, alt=seen, size=(8, 2))


# %%
def train(engine, steps=1000):
    """Gradient descent on the mean of (y - arm)²; returns the weights at some steps, and all losses."""
    leaf, _, kit = engines[engine]
    p, kept, losses = {name: leaf(array) for name, array in start.items()}, {}, []
    for step in range(steps + 1):
        if step in (0, 100, 300, steps):
            kept[step] = {name: w.data for name, w in p.items()}
        r = network(p, X, kit) + -arm  # your engine has no minus
        loss = kit.mean(r * r)
        losses.append(loss.data.item())
        loss.backward()
        for w in p.values():
            w.data, w.grad = w.data - 0.1 * w.grad, None
    return kept, losses


kept, losses = train("yours")
_, minitl_losses = train("minitl")
for name, run in {"yours": losses, "minitl": minitl_losses}.items():
    print(f"{name:6} loss {run[0]:.8f} at first, {run[-1]:.8f} at the end")
assert np.allclose(losses, minitl_losses, rtol=1e-9)
assert (np.sign(network(kept[1000], X, ops).data) == arm).mean() > 0.98

# %%
seen = "Four maps of the plane: at step 0 the two areas ignore the points, at step 1000 each area is a spiral."
lesson.images({"answer": [areas(p) for p in kept.values()]}, seen, [f"step {step}" for step in kept], side=1.6)

# %% [markdown]
# The maps show the answer of the network at each place, bright for one arm and dark for the other, with the points on
# top. Both engines do the same arithmetic, so the numbers agree.
#
# Your engine is enough for a real network. [one_file.py](one_file.py), the whole of TokenLearner in one file, trains a
# vision transformer with an engine like it. The lessons to come explain the rest of that file.
#
# ## Exercises
#
# **1. Which axes?** Let $a$ have shape $(5, 1, 3)$ and $b$ shape $(4, 1)$, and $y = a\,b$. First say the shape of $y$.
# Over which of its axes is the gradient of $b$ summed?

# %%
axes_of_b = None  # a tuple in ascending order, such as (1, 2)

check(axes_of_b=axes_of_b)

# %% [markdown]
# <details><summary>Answer</summary>
#
# $y$ has shape $(5, 4, 3)$. To fit, $b$ got a new axis in front and was stretched along its last:
# $(4, 1) \to (1, 4, 1) \to (5, 4, 3)$. So the sum runs over axes 0 and 2, and $dy$ becomes $(4, 1)$.
#
# ```python
# check(axes_of_b=(0, 2))
# ```
#
# </details>
#
# **2. An op of your own.** Write $y = \ln \sum_j e^{x_j}$ over the last axis as an op of minitl, with `@autograd.op`
# above it: $(B, d) \to (B,)$. Derive its backward. It should also work for $x_j = 1000$.


# %%
def my_logsumexp(x): ...


check(my_logsumexp)

# %% [markdown]
# <details><summary>Answer</summary>
#
# With $s = \sum_j e^{x_j}$, $y$ grows with $s$ at the rate $1/s$, and $s$ grows with $x_j$ at the rate $e^{x_j}$. So
# $dx_j = dy\, e^{x_j} / s$, which is $dy$ times the softmax. Subtracting the largest $m$ first, and adding it at the
# end, changes nothing but the size of the numbers: $\ln \sum e^{x_j} = m + \ln \sum e^{x_j - m}$.
#
# ```python
# @autograd.op
# def my_logsumexp(x):
#     m = x.max(-1, keepdims=True)
#     e = np.exp(x - m)
#     s = e.sum(-1, keepdims=True)
#     return (m + np.log(s))[:, 0], lambda dy: dy[:, None] * e / s
#
#
# check(my_logsumexp)
# ```
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write an engine for gradients, and say which failure each part of it prevents.
# - Read `minitl/autograd.py`, and explain what it drops, what it borrows, and what it refuses.
# - Choose the step of a finite difference, and test a gradient so that a mistake cannot hide.
#
# **Next:** [From pixels to tokens](03_patches.ipynb) turns images into what a transformer works on.
