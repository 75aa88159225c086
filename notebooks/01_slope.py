# %% [markdown]
# # 01 · A slope you can check
#
# To train a network is to change its numbers so that its *loss* gets smaller, one number that says how wrong its
# answers are. For each of these numbers one has to know whether the loss grows or falls with it, and how fast. This
# lesson computes such slopes for functions of arrays and checks every one of them by a measurement. It shows mistakes
# that raise no error and give wrong slopes. At the end, slopes fit a curve to data.
#
# | | |
# |---|---|
# | **Goal** | compute the slope of a loss with respect to every number behind it, and check the result |
# | **Time** | 40 minutes to read, 5 seconds to run on two cores of an AMD EPYC |
# | **You need** | NumPy arrays and the derivative of a function of one variable; no knowledge of networks |

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


x, slope = 1.0, 2.0  # from calculus: f'(x) = 3 x² - 1
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
# by a small amount, $f$ moves by about $f'(x)$ times that amount.
#
# ### A better measurement
#
# Take one point on each side instead. Taylor's formula says why that is better:
#
# $$f(x \pm h) = f(x) \pm h f'(x) + \tfrac{1}{2} h^2 f''(x) \pm \tfrac{1}{6} h^3 f'''(x) + \dots$$
#
# In $f(x + h) - f(x - h)$ all terms without $\pm$ cancel, and the **central difference** has an error proportional to
# $h^2$:
#
# $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \tfrac{1}{6} h^2 f'''(x) + \dots$$
#
# The one-sided difference of the secant keeps the term $\tfrac{1}{2} h f''(x)$. If $h$ is divided by 10, its error is
# divided by 10 too, and the error of the central difference by 100.

# %%
for h in (0.1, 0.01, 0.001):
    one_sided = (f(x + h) - f(x)) / h - slope
    central = (f(x + h) - f(x - h)) / (2 * h) - slope
    print(f"h = {h:<5}   error, one-sided {one_sided:.1e}   central {central:.1e}")
    assert np.isclose(one_sided, 6 / 2 * h, rtol=0.1)  # f''(1) = 6
    assert np.isclose(central, 6 / 6 * h**2, rtol=0.1)  # f'''(1) = 6

# %% [markdown]
# ## One slope for each number
#
# Now let $x$ be an array and $L$ a loss, a single number computed from it. There is one slope for each entry of $x$.
# Together they are the **gradient**, an array of the same shape as $x$. In this course its name is $dx$, short for
# $\partial L / \partial x$, and never a small change of $x$:
#
# $$dx_i = \frac{\partial L}{\partial x_i}\,, \text{ the slope of } L \text{ when } x_i \text{ alone moves}$$
#
# It can always be measured, one entry after the other. This function will be our referee. (A still smaller $h$ would
# not be better: lesson 02 shows why.)


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
# The referee is slow. It computes the loss twice for each entry, so for a network with a million numbers it would
# compute the loss two million times for a single step of training. The rest of this lesson finds all slopes at once.
#
# ## Two boxes in a row
#
# Let $x$ and $w$ have two entries each. The first box computes $y = \tanh x$, entry by entry. The second computes the
# dot product $L = \sum_i w_i y_i$. On each arrow is the slope of the box that it leads to.

# %%
edges = [
    ("$x$\nshape (2,)", "$y = \\tanh x$\nshape (2,)", "$\\times\\;(1 - y^2)$"),
    ("$y = \\tanh x$\nshape (2,)", "$L = \\Sigma\\, w\\, y$\na number", "$\\times\\;w$"),
]
seen = "Three boxes in a row, x, y and L, with the slopes 1 - y squared and w on the arrows."
lesson.graph(edges, alt=seen, size=(6.5, 1))

# %% [markdown]
# Move $x_i$ by a small $\varepsilon$. Then $y_i$ moves by $(1 - y_i^2)\,\varepsilon$, since $1 - y^2$ is the slope of
# $\tanh$, and $L$ moves by $w_i$ times as much. The slopes of boxes in a row multiply. That is the **chain rule**:
#
# $$dx_i = \frac{\partial L}{\partial y_i} \cdot \frac{\partial y_i}{\partial x_i} = w_i\,(1 - y_i^2)$$
#
# Read it from the end. We start with $dL = \partial L / \partial L = 1$, and each box turns the gradient of its output
# into that of its input:
#
# - the dot product: $dy = w\, dL$
# - the $\tanh$: $dx = (1 - y^2)\, dy$, entry by entry
#
# The $\tanh$ does not have to know about $w$, or about anything else that comes after $y$. All of that is in $dy$. The
# rule that makes $dx$ from $dy$ is the **pullback** of the box: its local derivative, written as a function.

# %%
x0, w0 = np.array([0.5, -1.0]), np.array([2.0, -3.0])

y = np.tanh(x0)
L = (w0 * y).sum()

dL = 1.0
dy = w0 * dL
dx = (1 - y**2) * dy

measured = measure(lambda x: (w0 * np.tanh(x)).sum(), x0)
print("by pullbacks", dx, "\nmeasured    ", measured)
assert np.allclose(dx, measured)

# %% [markdown]
# One walk from the end to the start gave all entries of $dx$. The direction matters: there is *one* number at the end
# and there are many at the start. Going forward, each of the many would need a walk of its own, as it does in
# `measure`.
#
# ## A graph out of arrays
#
# We do not want to write such lines again for every function. So each array gets a record of how it was made: its
# value, its parents, and its pullback, which takes the gradient of the value and returns one gradient for each parent.
# In a product $a\,b$ the slope with respect to $a$ is $b$, and with respect to $b$ it is $a$. In a sum each entry has
# the slope 1, so each gets $dy$. The helpers after that find all nodes behind a loss, and make texts of them for a
# drawing.

# %%
numbers = itertools.count(1)


class Node:
    """An array `value` that was computed from `parents`; `pullback` turns its gradient into theirs."""

    def __init__(self, name, value, parents=(), pullback=lambda dy: ()):  # by default no parents
        self.name, self.value, self.parents, self.pullback = name, value, parents, pullback
        self.order = next(numbers)  # 1 for the first node that was made, 2 for the second, and so on
        self.grad = None  # not known yet


def mul(a, b):
    return Node("mul", a.value * b.value, (a, b), lambda dy: (b.value * dy, a.value * dy))


def tanh(x):
    y = np.tanh(x.value)
    return Node("tanh", y, (x,), lambda dy: ((1 - y**2) * dy,))


def sin(x):
    return Node("sin", np.sin(x.value), (x,), lambda dy: (np.cos(x.value) * dy,))


def total(x):
    return Node("sum", x.value.sum(), (x,), lambda dy: (dy * np.ones_like(x.value),))


# %%
def nodes(loss):
    """All nodes that the loss was computed from, and itself, oldest first."""
    found, todo = {loss}, [loss]  # todo: nodes whose parents have not been looked at
    while todo:
        new = set(todo.pop().parents) - found
        found |= new
        todo += new
    return sorted(found, key=lambda node: node.order)


def text(node):
    value, grad = (np.array2string(np.array(a), precision=2, floatmode="fixed") for a in (node.value, node.grad))
    return f"{node.order}: {node.name}\nvalue {value}\ngrad {grad}"


def arrows(loss):
    return [(text(parent), text(node)) for node in nodes(loss) for parent in node.parents]


# %%
x, w = Node("x", x0), Node("w", w0)
L = total(mul(w, tanh(x)))
seen = "A graph of five nodes, numbered as they were made; each shows its value, and grad None."
lesson.graph(arrows(L), alt=seen, size=(8, 1.8))

# %% [markdown]
# Every box says `grad None`, since no gradient has been computed yet. Some libraries start with 0 instead, and a graph
# drawn too early then shows zeros that look like results. Here `None` means "not known", and 0 is a result: $L$ does
# not react to small changes.
#
# Now walk back, from the newest node to the oldest. Each node turns its gradient into gradients of its parents. How a
# parent takes what comes is a function of its own, because there will be two ways.


# %%
def overwrite(parent, grad):
    parent.grad = grad


def walk(order, take):
    """Forget all gradients, then visit the nodes in this order, beginning with the loss."""
    for node in order:
        node.grad = None
    order[0].grad = 1.0
    for node in order:
        for parent, grad in zip(node.parents, node.pullback(node.grad), strict=True):
            take(parent, grad)


walk(nodes(L)[::-1], overwrite)
assert np.allclose(x.grad, measured) and np.allclose(w.grad, np.tanh(x0))

# %%
seen = "The same graph after the walk: every box now has a gradient, which is 1 at the loss."
lesson.graph(arrows(L), alt=seen, size=(8, 1.8))

# %% [markdown]
# The gradient of $w$ came from the same walk. It equals $y$, since $L = \sum_i w_i y_i$ grows with $w_i$ at the rate
# $y_i$.
#
# ## A value that is used twice
#
# Now put $x$ in the place of $w$: $L = \sum_i x_i \tanh x_i$. It goes into two boxes.

# %%
x = Node("x", x0)
L = total(mul(x, tanh(x)))
walk(nodes(L)[::-1], overwrite)

measured = measure(lambda x: (x * np.tanh(x)).sum(), x0)
print("walked  ", x.grad, "\nmeasured", measured)
assert not np.allclose(x.grad, measured)  # wrong!

# %%
seen = "A graph in which two arrows leave x, one to tanh and one past it to mul."
lesson.graph(arrows(L), alt=seen, size=(8, 1.5))

# %% [markdown]
# The result of the walk is wrong, and without the measurement nobody would know. Two arrows leave $x$, so two gradients
# come back to it. First `mul` wrote $\tanh x$ into `x.grad`. Then `tanh` overwrote it, and what the box shows is the
# part of `tanh` alone.
#
# What is right? Move $x_i$ by $\varepsilon$. $L$ moves because of the first use, and it moves because of the second.
# For small $\varepsilon$ the two movements add up, so **the gradient of a value is the sum over all its uses**:
#
# $$dx_i = \underbrace{\tanh x_i}_{\text{through mul}} + \underbrace{x_i\,(1 - \tanh^2 x_i)}_{\text{through tanh}}$$
#
# You know this formula as the product rule. In code: add a gradient to what is there.


# %%
def accumulate(parent, grad):
    parent.grad = grad if parent.grad is None else parent.grad + grad


walk(nodes(L)[::-1], accumulate)
print("walked  ", x.grad, "\nmeasured", measured)
assert np.allclose(x.grad, measured)

# %% [markdown]
# ### A matrix uses each number many times
#
# Let $y = X w$ with a fixed matrix $X$ of shape $(B, d)$ and $w$ of shape $(d,)$. Write the sum out:
# $y_i = \sum_k X_{ik} w_k$. The slope of $y_i$ with respect to $w_k$ is $X_{ik}$, and $w_k$ is used in all $B$ entries
# of $y$. So we add:
#
# $$dw_k = \sum_i X_{ik}\, dy_i \qquad\text{that is}\qquad dw = X^\top dy, \quad \text{shapes } (d,) = (d, B)\,(B,)$$
#
# A transpose appears in the gradient of every matrix product. It comes from this sum over uses.


# %%
def matvec(X, w):
    return Node("X w", X @ w.value, (w,), lambda dy: (X.T @ dy,))


X = rng.standard_normal((4, 2))
w = Node("w", w0)
walk(nodes(total(tanh(matvec(X, w))))[::-1], accumulate)
assert np.allclose(w.grad, measure(lambda w: np.tanh(X @ w).sum(), w0))

# %% [markdown]
# ## Why the order matters
#
# So far we walked from the newest node to the oldest. Is that necessary? Here is a graph with a diamond in it: $a$ is
# used by $b$ and by $c$, and both lead to $d$.

# %%
x = Node("x", np.array([0.8, -0.5]))
a = mul(x, x)  # drawn with one arrow
b, c = tanh(a), sin(a)
d = mul(b, c)
L = total(d)
diamond = ("xa", "ab", "ac", "bd", "cd", "dL")  # "xa" is an arrow from x to a
seen = "x leads to a; a leads to b and to c, and both of these lead to d, which leads to the loss L."
lesson.graph([tuple(pair) for pair in diamond], alt=seen, size=(6.5, 1.2))

# %% [markdown]
# A rule that seems natural: hand a gradient on as soon as it arrives. From $L$ to $d$, on to $c$, to $a$, to $x$, and
# then to $b$, which was left out. It is the third of the orders below. The fourth goes on from $b$ to $a$ and $x$ once
# more. Which of the four give the right gradient?

# %%
measured = measure(lambda x: (np.tanh(x * x) * np.sin(x * x)).sum(), x.value)
at = {"L": L, "d": d, "c": c, "b": b, "a": a, "x": x}
verdicts = []
for order in ("L d c b a x", "L d b c a x", "L d c a x b", "L d c a x b a x"):
    walk([at[letter] for letter in order.split()], accumulate)
    verdicts.append("right" if np.allclose(x.grad, measured) else "wrong")
    print(f"{order:15}   dx = {x.grad}   {verdicts[-1]}")
print(f"measured          dx = {measured}")
assert verdicts == ["right", "right", "wrong", "wrong"]

# %% [markdown]
# The first two do. In the third, $a$ handed its gradient on before $b$ had added to it, so the part that comes through
# $b$ never reached $x$. In the fourth, $a$ was visited again after that part had come. But now `a.grad` was the sum of
# both parts, so the part that comes through $c$ reached $x$ twice.

# %%
visits = {"L": "1st", "d": "2nd", "c": "3rd", "a": "4th: too early", "x": "5th: too little", "b": "6th: too late"}
early = [tuple(f"{letter}\n{visits[letter]}" for letter in pair) for pair in diamond]
seen = "The diamond with the third order: a is visited fourth, b only sixth, so x gets too little."
lesson.graph(early, alt=seen, size=(6.5, 1.8))

# %% [markdown]
# So the rule is: **visit a node once, after all nodes that use it**. Then its gradient is complete before it is handed
# on. An order with this property is called a *topological order*.
#
# We do not have to search for one. A node can only use nodes that exist already, so every node is newer than its
# parents. In every graph, from the newest to the oldest is a topological order.


# %%
def backward(loss):
    """Add to the gradient of every node that the loss was computed from."""
    loss.grad = np.ones_like(loss.value)
    for node in reversed(nodes(loss)):
        for parent, grad in zip(node.parents, node.pullback(node.grad), strict=True):
            accumulate(parent, grad)


def tangle(x, seed):
    """A graph of 20 random boxes, each of which many later ones may use."""
    made, pick = [x], np.random.default_rng(seed)
    for _ in range(20):
        new, old = made[-1], made[pick.integers(len(made))]
        made.append([mul(new, old), tanh(new), sin(new)][pick.integers(3)])
    return total(made[-1])


def agrees(seed):
    x = Node("x", np.array([0.8, -0.5]))
    backward(tangle(x, seed))
    return np.allclose(x.grad, measure(lambda x: tangle(Node("x", x), seed).value, x.value))


assert all(agrees(seed) for seed in range(10))

# %% [markdown]
# Ten random graphs, and every gradient agrees with its measurement.
#
# ## What gradients are for
#
# Here are 40 noisy points, and we want a curve through them. The curve is a sum of seven cosine waves, each with a
# weight of its own: $y = X w$ with $X_{ik} = \cos(\pi k t_i)$ of shape $(40, 7)$. The loss is the sum of the squared
# distances, $L = \sum_i r_i^2$ with $r = y - \text{target}$.
#
# All weights begin at 0. The gradient says how fast $L$ grows with each weight, so we move each weight a little in the
# other direction, $w \leftarrow w - 0.01\, dw$, and repeat. This is **gradient descent**, and 0.01 is its *learning
# rate*. All networks in this course learn by steps against the gradient.

# %%
t = np.linspace(0, 1, 40)
target = np.sin(5 * t) * np.exp(-t) + 0.05 * rng.standard_normal(40)
X = np.cos(np.pi * t[:, None] * np.arange(7))  # (40, 7)


def loss_of(w):
    y = matvec(X, w)
    r = Node("y - target", y.value - target, (y,), lambda dr: (dr,))
    return total(mul(r, r))


def descend(clear):
    """Take 31 steps; return the weights and the loss before each."""
    w, weights, losses = Node("w", np.zeros(7)), [], []
    for _ in range(31):
        L = loss_of(w)
        if clear:
            w.grad = None
        backward(L)
        weights.append(w.value)
        losses.append(L.value)
        w.value = w.value - 0.01 * w.grad
    return weights, losses


# %%
weights, losses = descend(clear=True)
lines = {"data": (t, target)}
for step in (0, 1, 3, 30):
    lines[f"step {step}: loss {losses[step]:.3f}"] = t, X @ weights[step]
best = np.linalg.lstsq(X, target)[0]  # the best weights, by a formula
lines[f"best: loss {((X @ best - target) ** 2).sum():.3f}"] = t, X @ best
lesson.curves(lines, "t", "y", alt="A noisy wave, and curves that start flat and come closer to it until step 30.")
assert np.allclose(weights[30], best, atol=0.01)

# %% [markdown]
# This problem is so simple that a formula gives the best weights. After thirty steps our curve can hardly be told from
# the best one. For a network there is no such formula, but there are the same steps.
#
# ### Gradients pile up
#
# `backward` adds to the gradients that it finds. Within one walk that is right. But `w` is still there at the next
# step, and still has the gradient of the step before. The line `w.grad = None` removes it. What if we leave it out?

# %%
runs = {"cleared": losses, "piled up": descend(clear=False)[1]}
seen = "The loss falls to near 0 and stays there if gradients are cleared; if they pile up, it swings up and down."
lesson.curves({name: (range(31), run) for name, run in runs.items()}, "step", "loss", alt=seen)
assert max(losses[10:]) < 0.2 and max(runs["piled up"][10:]) > 5

# %% [markdown]
# Each step then follows the sum of all gradients so far, so the weights run past the goal again and again. Every
# training loop therefore clears the gradients. In minitl, as in PyTorch, `zero_grad` does it.
#
# Calling `backward` **twice on the same graph** is worse. One would expect twice the gradient:

# %%
w = Node("w", np.zeros(7))
L = loss_of(w)
backward(L)
once = w.grad
backward(L)
print("times the gradient:", w.grad / once)
assert np.allclose(w.grad, 5 * once)

# %% [markdown]
# It is five times. The nodes between `L` and `w` had kept their gradients from the first call, added to them, and
# handed the sums on: `L` its gradient, `mul` twice its own, `y - target` three times, `X w` four times. And `w` added
# what came to what it had. So only the **leaves** of a graph, nodes without parents such as `w`, should keep a
# gradient. Lesson 02 shows how minitl does that, and why it refuses the second call.
#
# ## Exercises
#
# **1. The other factor.** In $y = X w$, let $X$ be learned too. Write the sum out, take the slope of $y_i$ with respect
# to $X_{ik}$, and return $dX$ for a given $dy$.


# %%
def gradient_of_matrix(X, w, dy): ...


check(gradient_of_matrix)

# %% [markdown]
# <details><summary>Answer</summary>
#
# $X_{ik}$ is used once, in $y_i$, and the slope there is $w_k$. So $dX_{ik} = dy_i\, w_k$, of shape $(B, d)$.
#
# ```python
# def gradient_of_matrix(X, w, dy):
#     return np.outer(dy, w)
#
#
# check(gradient_of_matrix)
# ```
#
# </details>
#
# **2. Shares.** Let $y = x / s$ with $s = \sum_j x_j$, so that the entries of $y$ add up to 1. Each $x_i$ is used
# twice: in the numerator and in $s$. Return $dx$ for a given $dy$. (The softmax of lesson 04 is built on this.)


# %%
def shares_backward(x, dy): ...


check(shares_backward)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Through the numerator, $y_i$ grows with $x_i$ at the rate $1/s$. Through $s$, every $y_j$ changes: $s$ grows with
# $x_i$ at the rate 1, and $y_j$ grows with $s$ at the rate $-x_j / s^2 = -y_j / s$. The sum over all uses is
# $dx_i = dy_i / s - \sum_j dy_j\, y_j / s$.
#
# ```python
# def shares_backward(x, dy):
#     s = x.sum()
#     return (dy - (dy * x / s).sum()) / s
#
#
# check(shares_backward)
# ```
#
# </details>
#
# **3. The price of not waiting.** There is another correct way: hand every contribution on by itself as soon as it
# arrives, without adding it to the others first. Take a node, add it to itself, add the result to itself, and so on, 20
# times. How many contributions arrive at the first node?

# %%
arrivals = None  # your number

check(arrivals=arrivals)

# %% [markdown]
# <details><summary>Answer</summary>
#
# One contribution arrives for each path. Two arrows lead from each node to the one before, so each of the 20 additions
# doubles the number of paths. The walk in topological order visits 21 nodes.
#
# ```python
# def arrivals_after(n):
#     return 1 if n == 0 else 2 * arrivals_after(n - 1)
#
#
# check(arrivals=arrivals_after(20))
# ```
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Measure any slope by a central difference, and say how its error shrinks with $h$.
# - Walk the chain rule backward through boxes of arrays, with one pullback for each box.
# - Explain why the gradients of all uses are added, why a node waits for all of them, and why gradients are cleared
#   before the next step.
#
# **Next:** [Forty lines that differentiate](02_engine.ipynb) turns this graph into an engine that trains networks, and
# reads minitl's own beside it.
