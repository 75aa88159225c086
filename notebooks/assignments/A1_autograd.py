# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A1 · Autograd
#
# You write the parts of an engine that differentiates: the order in which it walks back, the gradients of two
# operations, the reverse of broadcasting, the sum of gradients, and the check that tells whether they are right.
#
# | | |
# |---|---|
# | **Points** | 16 by checks (9 visible, 7 hidden), 2 for written answers |
# | **Time** | 5 to 8 hours |
# | **You need** | NumPy, the chain rule, lessons 01 and 02 of the course |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another. Letters: `x`, `y` are values, `dx` means ∂L/∂x, where L is the loss.

# %%
import numpy as np
from lesson import curves, graph

import minitl
from minitl import Tensor, ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## Task 1 · The order of the walk back
#
# A computation is a graph: each result remembers its parents, the values that it was computed from. The walk back
# starts at the loss and may visit a node only after all nodes that were computed from it, because each of them adds to
# its gradient.
#
# For a node $n$ with parents $p_1, \dots, p_k$, a valid order lists $n$ before every $p_i$, and each node once.


# %%
class Node:
    """A value in a graph: an array, the nodes it was computed from, and ``pullback(dy)``, a list with a dx for each."""

    def __init__(self, data, parents=(), pullback=None):
        self.data, self.parents, self.pullback, self.grad = data, parents, pullback, None


def mul_node(x, y):
    return Node(x.data * y.data, (x, y), lambda dy: [dy * y.data, dy * x.data])


def add_node(x, y):
    return Node(x.data + y.data, (x, y), lambda dy: [dy, dy])


a, b = Node(2.0), Node(3.0)
c = mul_node(a, b)
loss = add_node(c, a)
print("loss =", loss.data, "| parents of the loss:", [p.data for p in loss.parents])

# %%
graph(
    [
        ("a = 2", "c = a b = 6"),
        ("b = 3", "c = a b = 6"),
        ("c = a b = 6", "loss = c + a = 8"),
        ("a = 2", "loss = c + a = 8"),
    ],
    alt="A graph: a and b lead to c; c and a lead to the loss.",
)

# %% [markdown]
# In this example `[loss, c, a, b]` and `[loss, c, b, a]` are valid. `[loss, a, c, b]` is not: `a` stands before `c`.
#
# A depth-first walk that appends a node after all its parents gives the reverse of a valid order.


# %% answer="a1-order"
def walk_order(loss):
    """Return a list of all nodes that ``loss`` was computed from, and itself: each once, before its parents.

    At most 500 nodes lie between the loss and any other node, so recursion is fine.
    """
    ### BEGIN SOLUTION
    found, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            found.append(node)

    visit(loss)
    return found[::-1]
    ### END SOLUTION


# %% test="a1-order-1" points=2
p, q = Node(2.0), Node(3.0)
r = mul_node(p, q)
s = add_node(p, r)
found = walk_order(s)
assert isinstance(found, list), f"expected a list, got {type(found).__name__}"
assert len(found) == 4, f"expected 4 nodes, each once; got {len(found)}"
place = {node: i for i, node in enumerate(found)}
for node in (r, s):
    for parent in node.parents:
        assert place[node] < place[parent], f"{node.data} was computed from {parent.data}, so it must stand before it"
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a1-order-2" points=1
chain = Node(1.0)
for _ in range(5):
    chain = add_node(add_node(chain, chain), mul_node(chain, chain))
found = walk_order(chain)
place = {node: i for i, node in enumerate(found)}
assert len(found) == len(place) == 16, f"expected 16 nodes, each once; got {len(found)}"
assert all(place[n] < place[p] for n in found for p in n.parents), "a parent stands before a node computed from it"
alone = Node(5.0)
assert walk_order(alone) == [alone], "for a loss that was computed from nothing, expected the list [loss]"
left, right = Node(1.0), Node(2.0)
short, long = mul_node(left, right), add_node(left, left)
for _ in range(5):
    long = add_node(long, right)
for top in (add_node(short, long), add_node(long, short)):
    place = {node: i for i, node in enumerate(walk_order(top))}
    assert len(place) == 11 - 1, f"expected 10 nodes, got {len(place)}"
    assert all(place[n] < place[p] for n in place for p in n.parents), "a parent stands before a node computed from it"

# %% [markdown]
# **Look.** The order of your walk for the example above:

# %%
print([node.data for node in walk_order(loss)])

# %% [markdown]
# **Question 1** (1 point). Let `a` in the example be computed itself, from a node $t = 1$ as $a = 2t$. In two or three
# sentences: which gradient should $t$ get, and which does it get if the walk visits `a` before `c`? Why?

# %% [markdown] written="a1-q1" points=1
# The gradient of `a` is 1 from the sum and b = 3 from the product, 4 in all, so $t$ should get 2 · 4 = 8. If the walk
# visits `a` before `c`, the gradient of `a` is only 1 by then, and $t$ gets 2 · 1 = 2: the part through `c` arrives
# after `a` has passed its gradient on.
#
# Rubric: half a point for 8 and 2; half a point for "the part through c arrives after a has passed its gradient on".

# %% [markdown]
# ## Task 2 · The gradients of two products
#
# An operation returns its value and a function `backward(dy)`, which returns a tuple with a gradient for each input.
# With $dy$ of the shape of $y$:
#
# - $y = x \odot z$, all of shape $(M, K)$: $\;dx = dy \odot z$, $\;dz = dy \odot x$.
# - $y = x W$ with $x$ $(M, K)$, $W$ $(K, N)$, $y$ $(M, N)$: write one entry out, $y_{ij} = \sum_k x_{ik} W_{kj}$, take
#   its derivative by $x_{ik}$ and by $W_{kj}$, and find matrix products that give $dx$ $(M, K)$ and $dW$ $(K, N)$.

# %%
x, W = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
print("x W =", x @ W)
print("x W grows by", ((x + np.array([[0, 0, 0.001]])) @ W - x @ W).round(6), "when x[0, 2] grows by 0.001")


# %% answer="a1-ops"
def my_mul(x, z):
    """Return x z entry by entry, and backward: x, z, dy (M, K) -> dx, dz (M, K)."""
    ### BEGIN SOLUTION
    return x * z, lambda dy: (dy * z, dy * x)
    ### END SOLUTION


def my_matmul(x, W):
    """Return x W, and backward: x (M, K), W (K, N), dy (M, N) -> dx (M, K), dW (K, N)."""
    ### BEGIN SOLUTION
    return x @ W, lambda dy: (dy @ W.T, x.T @ dy)
    ### END SOLUTION


# %% test="a1-ops-1" points=2
x, z = np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 5.0, 6.0]])
y, backward = my_mul(x, z)
dx, dz = backward(np.array([[1.0, 10.0, 100.0]]))
assert np.allclose(y, [[4, 10, 18]]), f"the product: expected [[4, 10, 18]], got {y}"
assert np.allclose(dx, [[4, 50, 600]]), f"dx of my_mul: expected [[4, 50, 600]], got {dx}"
assert np.allclose(dz, [[1, 20, 300]]), f"dz of my_mul: expected [[1, 20, 300]], got {dz}"
W = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
y, backward = my_matmul(x, W)
dx, dW = backward(np.array([[1.0, 10.0]]))
assert np.allclose(y, [[4, 5]]), f"x W: expected [[4, 5]], got {y}"
assert np.shape(dx) == (1, 3), f"dx has the shape of x, (1, 3); got {np.shape(dx)}"
assert np.shape(dW) == (3, 2), f"dW has the shape of W, (3, 2); got {np.shape(dW)}"
assert np.allclose(dx, [[1, 10, 11]]), f"dx of my_matmul: expected [[1, 10, 11]], got {dx}"
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a1-ops-2" points=2
rng_hidden = np.random.default_rng(1)
for M, K, N in ((4, 3, 5), (1, 2, 1), (3, 3, 3)):
    x, W, dy = (rng_hidden.standard_normal(shape) for shape in ((M, K), (K, N), (M, N)))
    for array in (x, W, dy):
        array.flags.writeable = False
    y, backward = my_matmul(x, W)
    first, (dx, dW) = backward(dy), backward(dy)
    want_dx = [[sum(dy[i, j] * W[k, j] for j in range(N)) for k in range(K)] for i in range(M)]
    want_dW = [[sum(dy[i, j] * x[i, k] for i in range(M)) for j in range(N)] for k in range(K)]
    assert np.allclose(y, x @ W), f"my_matmul: the value is wrong for x {(M, K)}, W {(K, N)}"
    for name, got, want in (("dx", dx, want_dx), ("dW", dW, want_dW)):
        assert np.shape(got) == np.shape(want), f"my_matmul: {name} has shape {np.shape(got)}, not {np.shape(want)}"
        assert np.allclose(got, want), f"my_matmul: {name} is off by up to {np.abs(got - np.array(want)).max():.3g}"
    assert np.allclose(first[0], dx), "my_matmul: backward gives another result when it is called twice"
x, z, dy = (rng_hidden.standard_normal((3, 2)).astype(np.float32) for _ in range(3))
kept = [array.copy() for array in (x, z, dy)]
y, backward = my_mul(x, z)
dx, dz = backward(dy)
assert all((a == b).all() for a, b in zip((x, z, dy), kept, strict=True)), "my_mul writes into its arguments or dy"
assert np.allclose(dx, dy * z) and np.allclose(dz, dy * x), "my_mul: a gradient is wrong"
assert y.dtype == dx.dtype == dz.dtype == np.float32, f"float32 in, float32 out; got {y.dtype}, {dx.dtype}, {dz.dtype}"

# %% [markdown]
# ## Task 3 · The reverse of broadcasting
#
# In `x + b` with `x` (M, K) and `b` (K,), NumPy repeats `b` in every row. One entry of `b` then acts on M entries of
# the result, so its gradient is the sum of M entries of `dy`. In general: `dy` has the shape of the result; sum it over
# the axes that broadcasting added in front, and over those along which the input has length 1.
#
# $$db_j = \sum_i dy_{ij}, \qquad dy\ (M, K) \to db\ (K,)$$

# %%
dy = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
print("for b of shape (3,):  ", dy.sum(0))
print("for b of shape (2, 1):", dy.sum(1, keepdims=True).tolist())


# %% answer="a1-unbroadcast"
def unbroadcast(dy, shape):
    """Return the gradient, of the given ``shape``, of an input that was broadcast to the shape of ``dy``."""
    ### BEGIN SOLUTION
    new = dy.ndim - len(shape)
    ones = [i + new for i, size in enumerate(shape) if size == 1]
    return dy.sum(axis=(*range(new), *ones), keepdims=True).reshape(shape)
    ### END SOLUTION


# %% test="a1-unbroadcast-1" points=2
dy = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
for shape, want in (((3,), [11, 22, 33]), ((2, 1), [[6], [60]]), ((2, 3), dy)):
    got = unbroadcast(dy, shape)
    assert np.shape(got) == shape, f"for an input of shape {shape}, the gradient has shape {np.shape(got)}"
    assert np.allclose(got, want), (
        f"for an input of shape {shape}: expected {np.array(want).tolist()}, got {got.tolist()}"
    )
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a1-unbroadcast-2" points=2
dy = np.random.default_rng(2).standard_normal((4, 2, 3))
dy.flags.writeable = False
for shape in ((), (1,), (3,), (1, 3), (2, 1), (2, 3), (1, 1), (4, 1, 3), (1, 2, 1), (1, 1, 1), (4, 2, 3)):
    want = np.zeros(shape)
    source = np.broadcast_to(np.arange(want.size).reshape(shape), dy.shape)
    for i in range(want.size):
        want.flat[i] = sum(dy[place] for place in np.ndindex(dy.shape) if source[place] == i)
    got = unbroadcast(dy, shape)
    assert np.shape(got) == shape, f"for an input of shape {shape}, the gradient has shape {np.shape(got)}"
    assert np.allclose(got, want), f"for an input of shape {shape} and dy {dy.shape}: wrong sums"
square = np.arange(9.0).reshape(3, 3)
assert np.allclose(unbroadcast(square, (3, 1)), [[3], [12], [21]]), "for a 3 by 3 dy and an input of shape (3, 1)"

# %% [markdown]
# ## Task 4 · Gradients add
#
# A value that is used twice gets a gradient from each use; its gradient is their sum. The walk back therefore **adds**
# to `grad`, and starts the sum at the first part that arrives.
#
# $$\frac{\partial L}{\partial a} = \sum_{\text{uses } u} \frac{\partial L}{\partial u}\,\frac{\partial u}{\partial a}$$

# %%
a = Node(np.array([2.0, 5.0]))
square = mul_node(a, a)
print("the two parts of the gradient of a, from a * a:", square.pullback(np.ones(2)))


# %% answer="a1-accumulate"
def walk_back(nodes):
    """Set ``grad`` of every node. ``nodes`` are in a valid order, the loss first; every ``grad`` is None at first.

    The gradient of the loss is an array of ones like its data. ``node.pullback(node.grad)`` lists the parts for
    ``node.parents``; it is None for a node without parents. An array that a pullback returned may be the gradient of
    another node as well, so never write into it: no ``+=`` on arrays.
    """
    ### BEGIN SOLUTION
    nodes[0].grad = np.ones_like(nodes[0].data)
    for node in nodes:
        if node.pullback is not None:
            for parent, part in zip(node.parents, node.pullback(node.grad), strict=True):
                parent.grad = part if parent.grad is None else parent.grad + part
    ### END SOLUTION


# %% test="a1-accumulate-1" points=2
a, b = Node(np.array([2.0, 5.0])), Node(np.array([3.0, 4.0]))
c = mul_node(a, b)
top = add_node(c, a)
walk_back([top, c, b, a])
assert np.allclose(top.grad, [1, 1]), f"the gradient of the loss is an array of ones, got {top.grad}"
assert np.allclose(b.grad, [2, 5]), f"the gradient of b: expected [2, 5], got {b.grad}"
assert np.allclose(a.grad, [4, 5]), f"a is used twice; its gradient: expected [4, 5], got {a.grad}"
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a1-accumulate-2" points=1
a, b = Node(np.array([[2.0, 3.0]])), Node(np.array([[7.0, -1.0]]))
both = add_node(a, b)  # its pullback hands the same array to a and to b
more = mul_node(a, a)
top = add_node(both, more)
walk_back([top, both, more, a, b])
assert np.allclose(both.grad, 1) and np.allclose(top.grad, 1), "a gradient changed after it was passed on: was += used?"
assert np.allclose(b.grad, 1), f"the gradient of b is 1, got {b.grad}: was += used on an array that a shares with b?"
assert np.allclose(a.grad, [[5, 7]]), f"the gradient of a + b + a * a by a is 1 + 2 a = [[5, 7]], got {a.grad}"
alone = Node(np.array([1.0, 2.0]))
walk_back([alone])
assert np.allclose(alone.grad, 1), "the gradient of a loss without parents is an array of ones"

# %% [markdown]
# **Question 2** (1 point). In two or three sentences: why does a training loop set all gradients to None before each
# step, and what would happen to the steps if it did not?

# %% [markdown] written="a1-q2" points=1
# The walk back adds to gradients, so without this the gradient of a step would contain those of all earlier steps,
# taken at other weights. The steps would be too large and follow old directions.
#
# Rubric: 1 point for "gradients of earlier steps would be added" and a consequence; half a point for one of the two.

# %% [markdown]
# ## Task 5 · Is it right? Finite differences
#
# For a function $f$ of an array $x$ that returns one number, each entry of the gradient is nearly
#
# $$\frac{\partial f}{\partial x_i} \approx \frac{f(x + h e_i) - f(x - h e_i)}{2h},$$
#
# where $e_i$ is 1 at entry $i$ and 0 elsewhere. The error of this central difference falls as $h^2$; that of the
# one-sided difference $(f(x + h e_i) - f(x)) / h$ only as $h$.


# %%
def cube(x):
    return float((x**3).sum())


point = 2.0
for h in (0.1, 0.01):
    central = ((point + h) ** 3 - (point - h) ** 3) / (2 * h)
    print(f"h = {h}: central {central:.6f}, one-sided {((point + h) ** 3 - point**3) / h:.6f}, exact 12")


# %% answer="a1-numeric"
def numeric_gradient(f, x, h=1e-5):
    """Return the gradient of ``f`` at ``x``, a float64 array of any shape, by central differences; do not change x."""
    ### BEGIN SOLUTION
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[i] = h
        grad[i] = (f(x + unit) - f(x - unit)) / (2 * h)
    return grad
    ### END SOLUTION


# %% test="a1-numeric-1" points=1
x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
got = numeric_gradient(lambda x: (x**2).sum(), x)
assert np.shape(got) == (2, 3), f"the gradient has the shape of x, (2, 3); got {np.shape(got)}"
assert np.allclose(got, 2 * x, atol=1e-6), f"the gradient of the sum of squares is 2 x, got {got}"
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% hidden="a1-numeric-2" points=1
x = np.random.default_rng(3).standard_normal((2, 1, 3)) * 3
kept = x.copy()
got = numeric_gradient(lambda x: np.exp(x).sum(), x, h=1e-3)
worst = (np.abs(got - np.exp(x)) / np.exp(x)).max()
assert worst < 1e-6, f"with h = 0.001 a central difference is right to about 2e-7; yours is off by {worst:.1g}"
assert (x == kept).all(), "x was changed, and not changed back exactly"
x = np.asfortranarray(np.random.default_rng(4).standard_normal((3, 2)))
x.flags.writeable = False
got = numeric_gradient(lambda x: float(x[0, 1] * x[2, 0]), x)
want = np.zeros((3, 2))
want[0, 1], want[2, 0] = x[2, 0], x[0, 1]
assert np.allclose(got, want, atol=1e-6), f"expected {want.tolist()}, got {got.tolist()}"

# %% [markdown]
# **Look.** The error of your gradient against the step. From right to left it falls as $h^2$, until rounding takes
# over.

# %%
steps = 10.0 ** np.arange(-9, 0)
errors = [abs(numeric_gradient(cube, np.array([2.0]), h=h)[0] - 12) + 1e-16 for h in steps]
curves(
    {"error": (steps, errors)},
    "step h",
    "error of the gradient",
    "The error falls with the step until about 1e-5 and grows again below.",
    marks=True,
    xscale="log",
    yscale="log",
)

# %% [markdown]
# ## Plug in
#
# Now minitl computes with your operations. A network with one hidden layer learns to tell points inside a circle from
# those outside; every product in it, forward and backward, is yours. Each point has a third coordinate, 1, whose
# weights are the biases of the hidden layer.

# %%
points = np.hstack([rng.standard_normal((200, 2)), np.ones((200, 1))])
wanted = (np.linalg.norm(points[:, :2], axis=1, keepdims=True) < 1.2) * 2.0 - 1  # 1 inside, -1 outside
W1, W2 = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((3, 16), (16, 1)))
losses = []
with minitl.plug(mul=my_mul, matmul=my_matmul):
    for _ in range(150):
        error = ops.matmul(ops.tanh(ops.matmul(points, W1)), W2) - wanted
        loss = ops.mean(error * error)
        W1.grad = W2.grad = None
        loss.backward()
        for weight in (W1, W2):
            weight.data = weight.data - 0.05 * weight.grad
        losses.append(float(loss.data))
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, right for {(np.abs(error.data) < 1).mean():.0%} of the points")

# %% [markdown]
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A1_autograd.ipynb`. Hand in this file alone.
