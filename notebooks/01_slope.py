# %% [markdown]
# # 01 · A slope you can check
#
# To train a network is to change its numbers so that a *loss* gets smaller. For each of the numbers one has to know
# whether the loss grows or falls with it, and how fast. This lesson computes such slopes for functions of arrays and
# checks every one of them by a measurement. It shows two ways in which the computation goes wrong without an error
# message, and at the end the slopes fit a curve to data.
#
# | | |
# |---|---|
# | **Goal** | compute the slope of a loss with respect to every number in it, and prove the result right |
# | **Time** | 40 minutes to read, 5 seconds to run on two cores of an AMD EPYC |
# | **You need** | NumPy arrays, the derivative of a function of one variable; no knowledge of networks |

# %%
import itertools

import lesson
import numpy as np
from checks import check

rng = np.random.default_rng(0)

# %% [markdown]
# ## The slope at a point
#
# How fast does $f(x) = x^3 - x$ grow at $x = 1$? Take a second point at the distance $h$ and draw the straight line
# through both, a **secant**. Its slope is the rise divided by the run:
#
# $$\frac{f(x + h) - f(x)}{h}$$


# %%
def f(x):
    return x**3 - x


x, slope = 1.0, 2.0  # calculus: f'(x) = 3 x² - 1
for h in (1, 0.5, 0.1, 0.01):
    print(f"h = {h:<4}   slope of the secant {(f(x + h) - f(x)) / h:.4f}")

# %%
t = np.linspace(0, 2.1, 100)
lines = {"$f$": (t, f(t))}
for h in (1, 0.5, 0.1):
    lines[f"secant, h = {h}"] = t, f(x) + (f(x + h) - f(x)) / h * (t - x)
lines["tangent"] = t, f(x) + slope * (t - x)
seen = "A curve and three secants through its point at x = 1; the smaller h is, the closer they come to the tangent."
lesson.curves(lines, "x", "f(x)", alt=seen, ylim=(-1.5, 6))

# %% [markdown]
# As $h$ shrinks, the secants close in on one line, the tangent. Its slope is the **derivative** $f'(x)$: if $x$ moves
# by a small amount, $f$ moves by $f'(x)$ times as much.
#
# ### A better measurement
#
# Take one point on each side instead. Taylor's formula says why that is better:
#
# $$f(x \pm h) = f(x) \pm h f'(x) + \tfrac{1}{2} h^2 f''(x) \pm \tfrac{1}{6} h^3 f'''(x) + \dots$$
#
# In $f(x + h) - f(x - h)$ the terms without $\pm$ cancel, and the **central difference** has an error proportional to
# $h^2$:
#
# $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \tfrac{1}{6} h^2 f'''(x) + \dots$$
#
# The one-sided difference keeps the term $\tfrac{1}{2} h f''(x)$. If $h$ is ten times smaller, its error is ten
# times smaller, and that of the central difference a hundred times.

# %%
for h in (0.1, 0.01, 0.001):
    one_sided = (f(x + h) - f(x)) / h - slope
    central = (f(x + h) - f(x - h)) / (2 * h) - slope
    print(f"h = {h:<5}   error, one-sided {one_sided:.1e}   central {central:.1e}")
    assert np.isclose(one_sided, 3 * h, rtol=0.1) and np.isclose(central, h**2, rtol=0.1)  # f'' = 6, f''' = 6

# %% [markdown]
# ## One slope for each number
#
# Now let $x$ be an array and $L$ a loss, a single number computed from it. Then there is one slope for each entry of
# $x$. Together they are the **gradient**, an array of the same shape as $x$. We write $dx$ for it:
#
# $$dx_i = \frac{\partial L}{\partial x_i}, \text{ the slope of } L \text{ when } x_i \text{ alone moves}$$
#
# It can always be measured, one entry at a time. This function will be our referee.


# %%
def measure(loss, x, h=1e-5):
    """Gradient of the number loss(x) by central differences, an array of x's shape."""
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = (loss(x + step) - loss(x - step)) / (2 * h)
    return dx


# %% [markdown]
# The referee is slow. It computes the loss twice for each entry, and a network with a million numbers would need two
# million computations of the loss for a single step. The rest of this lesson finds all slopes in one walk.
#
# ## Two boxes in a row
#
# Let $x$ and $w$ have two entries each. The first box computes $y = \tanh x$, entry by entry. The second is the dot
# product $L = \sum_i w_i y_i$. At each arrow stands the slope of what it leads to.

# %%
edges = [
    ("$x$\nshape (2,)", "$y = \\tanh x$\nshape (2,)", "$\\times\\;(1 - y^2)$"),
    ("$y = \\tanh x$\nshape (2,)", "$L = \\Sigma\\, w\\, y$\na number", "$\\times\\;w$"),
]
lesson.graph(
    edges, alt="Three boxes in a row, x, y and L, with the slopes 1 - y squared and w at the arrows.", size=(6.5, 1)
)

# %% [markdown]
# Move $x_i$ by a small $\varepsilon$. Then $y_i$ moves by $(1 - y_i^2)\,\varepsilon$, since that is the slope of
# $\tanh$, and $L$ moves by $w_i$ times as much. Slopes of boxes in a row multiply. That is the **chain rule**:
#
# $$dx_i = \frac{\partial L}{\partial y_i} \cdot \frac{\partial y_i}{\partial x_i} = w_i\,(1 - y_i^2)$$
#
# Read it from the end. We start with $dL = 1$, and each box turns the gradient of its output into that of its input:
#
# - the dot product: $dy = w\, dL$
# - the $\tanh$: $dx = (1 - y^2)\, dy$
#
# The $\tanh$ does not have to know about $w$, or about anything after $y$. All of that is in $dy$. The rule that makes
# $dx$ from $dy$ is called the **pullback** of a box. It is the local derivative, written as a function.

# %%
x0, w0 = np.array([0.5, -1.0]), np.array([2.0, -3.0])

y = np.tanh(x0)
L = (w0 * y).sum()

dL = 1.0
dy = w0 * dL
dx = (1 - y**2) * dy

measured = measure(lambda x: (w0 * np.tanh(x)).sum(), x0)
print("pullbacks", dx, "\nmeasured ", measured)
assert np.allclose(dx, measured)

# %% [markdown]
# All three slopes came out of one walk, from the end to the start. It works in this direction because there is *one*
# number at the end and there are many at the start.
#
# ## A graph out of arrays
#
# We do not want to write these lines anew for each function. So every array gets a record of how it was made: its
# value, its parents, and its pullback, which takes the gradient of the value and returns one gradient for each parent.

# %%
numbers = itertools.count(1)


class Node:
    """An array `value` that was computed from `parents`; `pullback` turns its gradient into theirs."""

    def __init__(self, name, value, parents=(), pullback=lambda dy: ()):
        self.name, self.value, self.parents, self.pullback = name, value, parents, pullback
        self.order = next(numbers)  # 1 for the first node that was made, 2 for the second
        self.grad = None  # not known yet


def mul(a, b):
    return Node("mul", a.value * b.value, (a, b), lambda dy: (b.value * dy, a.value * dy))


def tanh(x):
    y = np.tanh(x.value)
    return Node("tanh", y, (x,), lambda dy: ((1 - y**2) * dy,))


def total(x):
    return Node("sum", x.value.sum(), (x,), lambda dy: (dy * np.ones_like(x.value),))


# %% [markdown]
# In a sum, each entry has the slope 1, so each gets $dy$. The next two functions find all nodes behind a loss, and
# make boxes and arrows of them.


# %%
def nodes(loss):
    """All nodes that the loss was computed from, and itself, oldest first."""
    found, todo = {loss}, [loss]
    while todo:
        new = set(todo.pop().parents) - found
        found |= new
        todo += new
    return sorted(found, key=lambda node: node.order)


def drawn(loss):
    """The arrows of a graph, as pairs of texts."""

    def text(node):
        shown = [
            a if a is None else np.array2string(np.asarray(a), precision=2, floatmode="fixed")
            for a in (node.value, node.grad)
        ]
        return f"{node.order}: {node.name}\nvalue {shown[0]}\ngrad {shown[1]}"

    return [(text(parent), text(node)) for node in nodes(loss) for parent in node.parents]


# %%
x, w = Node("x", x0), Node("w", w0)
L = total(mul(w, tanh(x)))
lesson.graph(
    drawn(L),
    size=(8, 1.8),
    alt="The graph of five nodes, numbered as they were made; each shows its value, and grad None.",
)

# %% [markdown]
# Each box says `grad None`, for nobody has computed a gradient yet. Some libraries start with 0 instead, and a graph
# drawn too early then shows zeros that look like results. `None` means "not known". 0 means "$L$ does not depend on
# it".
#
# Now walk back, from the newest node to the oldest. Each one hands on its gradient.


# %%
def hand_on(node):
    """Turn the gradient of a node into gradients of its parents."""
    for parent, grad in zip(node.parents, node.pullback(node.grad), strict=True):
        parent.grad = grad


def walk(order):
    """Forget all gradients, then visit the nodes in this order, beginning with the loss."""
    for node in order:
        node.grad = None
    order[0].grad = 1.0
    for node in order:
        hand_on(node)


walk(nodes(L)[::-1])
assert np.allclose(x.grad, measured) and np.allclose(w.grad, np.tanh(x0))

# %%
lesson.graph(
    drawn(L), size=(8, 1.8), alt="The same graph after the walk: each box now shows a gradient, which is 1 at the loss."
)

# %% [markdown]
# The gradient of $w$ came for free. Its entries are those of $y$, since $L$ grows by $y_i$ when $w_i$ grows by 1.
#
# ## A value that is used twice
#
# A small change: $L = \sum_i x_i \tanh x_i$. Now $x$ goes into two boxes.

# %%
x = Node("x", x0)
L = total(mul(x, tanh(x)))
walk(nodes(L)[::-1])

measured = measure(lambda x: (x * np.tanh(x)).sum(), x0)
print("walked  ", x.grad, "\nmeasured", measured)
assert not np.allclose(x.grad, measured)  # wrong!

# %%
lesson.graph(drawn(L), size=(8, 1.8), alt="A graph in which two arrows leave x, one to tanh and one straight to mul.")

# %% [markdown]
# The walk is wrong, and without the measurement nobody would know. Two arrows leave $x$, so two gradients come back to
# it. First `mul` wrote $\tanh x$ into `x.grad`, then `tanh` put its own in that place.
#
# What is right? Move $x_i$ by $\varepsilon$. $L$ moves because of the first use, and it moves because of the second.
# For small $\varepsilon$ the two movements add up, so **the gradient of a value is the sum over all its uses**:
#
# $$dx_i = \underbrace{\tanh x_i}_{\text{through mul}} + \underbrace{x_i\,(1 - \tanh^2 x_i)}_{\text{through tanh}}$$
#
# You know this formula as the product rule. In the code one line changes.


# %%
def hand_on(node):
    """Add, to the gradients of a node's parents, what comes to them through this node."""
    for parent, grad in zip(node.parents, node.pullback(node.grad), strict=True):
        parent.grad = grad if parent.grad is None else parent.grad + grad


walk(nodes(L)[::-1])
print("walked  ", x.grad, "\nmeasured", measured)
assert np.allclose(x.grad, measured)

# %% [markdown]
# ### A matrix uses each number many times
#
# Let $y = X w$ with a fixed matrix $X$ of shape $(B, d)$ and $w$ of shape $(d,)$. Write the sum out,
# $y_i = \sum_k X_{ik} w_k$. The slope of $y_i$ with respect to $w_k$ is $X_{ik}$, and $w_k$ is used in all $B$ entries
# of $y$. So we add:
#
# $$dw_k = \sum_i X_{ik}\, dy_i \qquad\text{which is}\qquad dw = X^\top dy, \quad (d,) = (d, B)\,(B,)$$
#
# The transpose that you will meet in every gradient of a matrix product is nothing but this sum over uses.


# %%
def matvec(X, w):
    return Node("X w", X @ w.value, (w,), lambda dy: (X.T @ dy,))


X = rng.standard_normal((4, 2))
w = Node("w", w0)
L = total(tanh(matvec(X, w)))
walk(nodes(L)[::-1])
assert np.allclose(w.grad, measure(lambda w: np.tanh(X @ w).sum(), w0))

# %% [markdown]
# ## Why the order matters
#
# So far we walked from the newest node to the oldest. Is that necessary? Here is a graph with a diamond in it: $a$ is
# used by $b$ and by $c$, and both lead to $d$.


# %%
def sin(x):
    return Node("sin", np.sin(x.value), (x,), lambda dy: (np.cos(x.value) * dy,))


x0 = np.array([0.8, -0.5])
x = Node("x", x0)
a = mul(x, x)
b, c = tanh(a), sin(a)
d = mul(b, c)
L = total(d)
measured = measure(lambda x: (np.tanh(x * x) * np.sin(x * x)).sum(), x0)

# %%
diamond = [("x", "a = x x"), ("a = x x", "b = tanh a"), ("a = x x", "c = sin a")]
diamond += [("b = tanh a", "d = b c"), ("c = sin a", "d = b c"), ("d = b c", "L = Σ d")]
lesson.graph(
    diamond, alt="x leads to a; a leads to b and to c, and both of these lead to d, which leads to the loss L."
)

# %% [markdown]
# A rule that seems natural: hand a gradient on as soon as it arrives. From $L$ to $d$, on to $c$, to $a$, to $x$, and
# then to $b$, which was left out. Four orders:

# %%
at = {"L": L, "d": d, "c": c, "b": b, "a": a, "x": x}
for order in ("L d c b a x", "L d b c a x", "L d c a x b", "L d c a x b a x"):
    walk([at[letter] for letter in order.split()])
    verdict = "right" if np.allclose(x.grad, measured) else "wrong"
    print(f"{order:15}   dx = {x.grad}   {verdict}")
print(f"measured          dx = {measured}")

# %% [markdown]
# The first two are right. In the third, $a$ handed on its gradient before $b$ had added to it, so the part that comes
# through $b$ never reached $x$. In the fourth, $a$ was visited again when that part had come. But then `a.grad` was the
# sum of both parts, and the part through $c$ was handed on for a second time.

# %%
early = [("x\n5th: too little", "a\n4th: too early"), ("a\n4th: too early", "b\n6th: too late")]
early += [("a\n4th: too early", "c\n3rd"), ("b\n6th: too late", "d\n2nd"), ("c\n3rd", "d\n2nd"), ("d\n2nd", "L\n1st")]
lesson.graph(early, alt="The diamond with the third order: a is visited fourth, b only sixth, so x gets too little.")

# %% [markdown]
# So here is the rule: **visit a node after all nodes that use it**, and only once. Then its gradient is complete when
# it is handed on. An order with this property is called a *topological order*.
#
# One need not search for it. A node can only use nodes that are there already, so each is newer than its parents. From
# the newest to the oldest is a topological order for every graph.


# %%
def backward(loss):
    """Add to the gradient of every node that the loss was computed from."""
    loss.grad = np.ones_like(loss.value)
    for node in reversed(nodes(loss)):
        hand_on(node)


def tangled(x, seed):
    """A graph of 20 boxes in which each may be used by many later ones."""
    made, pick = [x], np.random.default_rng(seed)
    for _ in range(20):
        new, old = made[-1], made[pick.integers(len(made))]
        made.append([mul(new, old), tanh(new), sin(mul(sin(new), old))][pick.integers(3)])
    return total(mul(made[-1], made[-2]))


for seed in range(10):
    x = Node("x", x0)
    backward(tangled(x, seed))
    assert np.allclose(x.grad, measure(lambda x, seed=seed: tangled(Node("x", x), seed).value, x0))

# %% [markdown]
# Ten random tangles, and every gradient agrees with its measurement.
#
# ## What gradients are for
#
# Forty noisy points, and a curve to be laid through them. The curve is a sum of seven cosine waves, each with a weight
# of its own: $y = X w$ with $X$ of shape $(40, 7)$. The loss is the sum of the squared distances, $L = \sum_i r_i^2$ with
# $r = y - \text{target}$.
#
# At first all weights are 0. The gradient says how fast $L$ grows with each weight, so we move each weight a little the
# other way: $w \leftarrow w - 0.01\, dw$. This is **gradient descent**, and it is how every network in this course
# learns.

# %%
t = np.linspace(0, 1, 40)
target = np.sin(5 * t) * np.exp(-t) + 0.05 * rng.standard_normal(40)
X = np.cos(np.pi * t[:, None] * np.arange(7))  # (40, 7)


def sub(y, target):
    return Node("sub", y.value - target, (y,), lambda dr: (dr,))


def descend(steps, forget=True):
    """Gradient descent: returns the weights before each step, and the losses."""
    w, weights, losses = Node("w", np.zeros(7)), [], []
    for _ in range(steps):
        r = sub(matvec(X, w), target)
        L = total(mul(r, r))
        if forget:
            w.grad = None
        backward(L)
        weights.append(w.value)
        losses.append(L.value)
        w.value = w.value - 0.01 * w.grad
    return weights, losses


# %%
weights, losses = descend(steps=31)
lines = {"data": (t, target)} | {f"step {step}": (t, X @ weights[step]) for step in (0, 1, 3, 30)}
lesson.curves(
    lines, "t", "y", alt="A noisy wave, and curves that start flat and lie on it better and better by step 30."
)
best = np.linalg.lstsq(X, target)[0]
print(
    "loss",
    np.round([losses[step] for step in (0, 1, 3, 30)], 3),
    "  smallest possible",
    np.round(((X @ best - target) ** 2).sum(), 3),
)
assert np.allclose(weights[30], best, atol=0.01)

# %% [markdown]
# For this small problem there is a formula for the best weights, and thirty steps come as close to them as one could
# wish. For a network there is no formula, and the steps are the same.
#
# ### Gradients pile up
#
# `backward` adds to the gradients that it finds. Within one walk that is right. But `w` is still there at the next
# step, with the gradient of the step before. The line `w.grad = None` forgets it. What happens without?

# %%
runs = {"forgotten": losses, "piled up": descend(steps=31, forget=False)[1]}
lines = {name: (range(31), run) for name, run in runs.items()}
lesson.curves(
    lines,
    "step",
    "loss",
    alt="The loss with forgotten gradients falls to near 0 and stays; with piled-up ones it swings up and down.",
)

# %% [markdown]
# Each step then moves against the sum of all gradients so far, and runs past the goal, again and again. So every
# training loop clears the gradients; in minitl, as in PyTorch, the line is called `zero_grad`.
#
# It is worse if you call `backward` **twice on the same graph**, since the nodes in the middle have kept their
# gradients as well:

# %%
w = Node("w", np.zeros(7))
r = sub(matvec(X, w), target)
L = total(mul(r, r))
backward(L)
once = w.grad
backward(L)
print("times the right gradient:", np.round(w.grad / once, 3))

# %%
