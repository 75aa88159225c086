"""The engine: right sums over any graph, no recursion, nothing kept longer than needed, no gradient shared."""

import contextvars
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minitl
from minitl import OPS, Tensor, no_grad, ops, plain
from minitl.autograd import OVERRIDES, PLAIN, form, op, unbroadcast


def leaf(*values, dtype="float64"):
    return Tensor(np.array(values, dtype), requires_grad=True)


# --- graphs ---


def test_diamond():
    """x reaches the loss by two roads of different length."""
    x = leaf(2.0)
    a = x * x  # 4
    b = a * x  # 8
    (a * b + a).sum().backward()  # x^5 + x^2
    assert x.grad.tolist() == [5 * 16 + 2 * 2]


def test_nodes_wait_for_all_their_gradients():
    """A chain of diamonds: a node that ran early would run 2^30 times or give a wrong sum."""
    x = leaf(1.0)
    y = x
    for _ in range(30):
        y = y + y
    y.sum().backward()
    assert x.grad.tolist() == [2.0**30]


def test_same_tensor_twice():
    x, y = leaf(3.0), leaf(3.0)
    (x * x).sum().backward()
    ops.concatenate(y, y, y).sum().backward()
    assert x.grad.tolist() == [6.0] and y.grad.tolist() == [3.0]


def test_unused_branch():
    x, y = leaf(3.0), leaf(1.0)
    _ = (x * y).sum()
    (x + x).sum().backward()
    assert x.grad.tolist() == [2.0] and y.grad is None


def test_constants_get_no_gradient():
    x, constant = leaf(3.0), Tensor(np.array([2.0]))
    y = constant * constant
    (x * y).sum().backward()
    assert x.grad.tolist() == [4.0] and constant.grad is None and y.node is None


def test_deep_chain():
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0]


def test_deep_chain_may_be_dropped():
    """Without backward: freeing the record must not recurse either."""
    y = ops.exp(leaf(1.0))
    first = weakref.ref(y.data)
    for _ in range(50_000):
        y = y * 1.0
    assert first() is not None
    del y
    assert first() is None


def test_leaves_accumulate():
    x = leaf(1.0, 2.0)
    for _ in range(3):
        (x * x).sum().backward()
    assert x.grad.tolist() == [6.0, 12.0]


def test_leaf_backward():
    x = leaf(5.0)
    x.backward()
    x.backward()
    assert x.grad.tolist() == [2.0]


def test_second_backward():
    x = leaf(1.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"backward\(\) already ran through this sum; compute the loss again first"):
        loss.backward()
    assert x.grad.tolist() == [2.0]


def test_two_losses_share_a_graph():
    """Their sum works; one after the other says what to do."""
    x = leaf(2.0)
    shared = x * x
    (shared.sum() + (shared * shared).sum()).backward()
    assert x.grad.tolist() == [4.0 + 4 * 8]
    shared = x * x
    first, second = shared.sum(), (shared + 1.0).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="already ran through this mul; compute the loss again first"):
        second.backward()


# --- given gradients ---


def test_backward_with_a_gradient():
    x = leaf(1.0, 2.0, 3.0)
    given = np.array([1.0, 10.0, 100.0])
    (x * x).backward(given)
    assert x.grad.tolist() == [2.0, 40.0, 600.0]
    (x * x).backward(given)
    assert x.grad.tolist() == [4.0, 80.0, 1200.0] and given.tolist() == [1.0, 10.0, 100.0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_element_needs_none(shape):
    x = Tensor(np.full(shape, 3.0), requires_grad=True)
    (x * x).backward()
    assert x.grad.shape == shape and x.grad.item() == 6.0


@pytest.mark.parametrize(
    "grad, message",
    [
        (None, "got None"),
        (np.ones((1, 3)), r"float64\[3\] needs .sum\(\) first.*got float64\[1, 3\]"),
        (np.ones(1), r"got float64\[1\]"),
        (np.ones(3, "float32"), r"got float32\[3\]"),
        (1.0, "got 1.0"),
    ],
)
def test_wrong_gradient(grad, message):
    x = leaf(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=message):
        (x * x).backward(grad)
    assert x.grad is None


# --- who owns a gradient ---


def test_leaves_do_not_share_gradients():
    """add gives the same array to both; each leaf has its own, and neither is the caller's."""
    x, y, given = leaf(1.0, 2.0), leaf(3.0, 4.0), np.ones(2)
    (x + y).backward(given)
    assert not np.shares_memory(x.grad, y.grad) and not np.shares_memory(x.grad, given)
    x.grad += 1
    assert y.grad.tolist() == [1.0, 1.0] and given.tolist() == [1.0, 1.0]


def test_leaf_gradient_is_writable():
    """sum gives a read-only broadcast view."""
    x = leaf(1.0, 2.0)
    x.sum().backward()
    x.grad *= 3
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("uses", [1, 2, 3, 4])
def test_borrowed_gradients_are_not_written_to(uses):
    """u and v get one array from ``u + v``; what u gets on top must not reach v, nor the caller's array."""
    x, y, given = leaf(1.0), leaf(1.0), np.ones(1)
    u, v = x * 3.0, y * 5.0
    z = u + v
    for _ in range(uses):
        z = z + u
    z.backward(given)
    assert x.grad.tolist() == [3.0 * (uses + 1)] and y.grad.tolist() == [5.0] and given.tolist() == [1.0]


# --- no_grad ---


def test_no_grad():
    x = leaf(1.0)
    with no_grad():
        y = x * x
        with no_grad():
            assert (x * x).node is None
        assert (x * x).node is None, "the inner block switched recording on again"
    assert not y.requires_grad and y.node is None and (x * x).requires_grad
    with pytest.raises(RuntimeError, match="under no_grad"):
        y.backward()


def test_no_grad_ends_with_an_exception():
    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (x * x).requires_grad


def test_no_grad_holds_for_its_own_thread():
    x, recorded = leaf(1.0), []

    def work():
        recorded.append((x * x).requires_grad)
        with no_grad():
            recorded.append((x * x).requires_grad)
            inside.set()
            assert done.wait(60)

    inside, done = threading.Event(), threading.Event()
    with no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(60)
    recorded.append((x * x).requires_grad)  # the other thread is in its no_grad now
    done.set()
    thread.join()
    assert recorded == [True, False, True]


# --- memory ---


def test_pullbacks_are_freed_as_they_run(monkeypatch):
    """When a pullback runs, what the later ops saved is gone already."""
    saved, alive = [], []

    def exp(x):
        y = np.exp(x)
        saved.append(weakref.ref(y))
        me = len(saved) - 1

        def backward(dy):
            alive.append([i for i, ref in enumerate(saved) if ref() is not None] == list(range(me + 1)))
            return dy * y

        return y, backward

    monkeypatch.setitem(OPS, "exp", exp)
    x = leaf(0.1, 0.2)
    loss = ops.exp(ops.exp(ops.exp(x))).sum()
    assert all(ref() is not None for ref in saved)
    loss.backward()
    assert alive == [True] * 3 and all(ref() is None for ref in saved)


def test_activations_that_nothing_needs_are_freed():
    """add needs neither its inputs nor its value, so only the edge stays; exp keeps its value."""
    x = leaf(1.0, 2.0)
    a = x + 1.0
    b = a + 1.0
    c = ops.exp(b)
    refs = [weakref.ref(t.data) for t in (a, b, c)]
    del a, b
    loss = (c + 1.0).sum()
    del c
    assert [ref() is None for ref in refs] == [True, True, False]
    loss.backward()
    assert refs[2]() is None and x.grad.tolist() == np.exp([3.0, 4.0]).tolist()


def test_dropping_a_loss_frees_its_graph():
    """By reference counting alone: there are no cycles to collect."""
    x = leaf(1.0)
    y = ops.exp(x)
    ref = weakref.ref(y.data)
    loss = y.sum()
    gc.disable()
    try:
        del y, loss
        assert ref() is None
    finally:
        gc.enable()


# --- operators ---


def test_operators():
    """Each against NumPy, with tensors, arrays and numbers on both sides."""
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 0.5], [0.25, 8.0]])
    operators = [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: x / y,
        lambda x, y: x @ y,
    ]
    for fn in operators:
        for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
            assert isinstance(fn(x, y), Tensor) and (fn(x, y).data == fn(a, b)).all()
        if fn is not operators[-1]:
            for number in (2, 2.0, np.float64(2.0)):
                assert (fn(Tensor(a), number).data == fn(a, 2)).all()
                assert (fn(number, Tensor(a)).data == fn(2, a)).all()
    assert ((-Tensor(a)).data == -a).all() and ((Tensor(a) ** 3).data == a**3).all()
    assert (Tensor(a)[1].data == a[1]).all() and (Tensor(a)[:, 0].data == a[:, 0]).all()


def test_methods():
    a = np.arange(6.0).reshape(2, 3)
    x = Tensor(a)
    assert x.sum().item() == 15 and x.sum(axis=0, keepdims=True).shape == (1, 3)
    assert x.mean(axis=1).data.tolist() == [1.0, 4.0] and x.max(axis=1).data.tolist() == [2.0, 5.0]
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == x.reshape([3, -1]).shape == (3, 2)
    assert x.sum(keepdims=True).reshape(()).shape == ()
    with pytest.raises(ValueError, match=r"reshape\(float64\[2, 3\]\)"):
        x.reshape(())
    assert x.transpose().shape == x.transpose(1, 0).shape == x.transpose((1, 0)).shape == (3, 2)
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float64)


def test_numbers_keep_the_dtype():
    x = leaf(1.0, dtype="float32")
    for y in (x + 1.5, 1.5 - x, x * 2, 2.5 / x, x**2, x**0.5, x ** np.float64(2), x * np.float64(2), np.float64(2) - x):
        assert y.dtype == np.float32
    with pytest.raises(TypeError, match=r"mul\(float32\[1\], float64\[\]\).*one dtype"):
        x * np.array(2.0)


def test_gradients_reach_both_sides_of_an_array():
    x = leaf(2.0, 4.0)
    (np.array([8.0, 8.0]) / x - np.ones(2)).sum().backward()
    assert x.grad.tolist() == [-2.0, -0.5]


# --- tensors ---


def test_tensor_keeps_arrays_and_converts_data():
    x = np.ones(3)
    assert Tensor(x).data is x and minitl.tensor(x).data is x and minitl.tensor(Tensor(x)).data is x
    assert minitl.tensor([1.5, 2]).dtype == np.float32 and minitl.tensor(2).dtype == np.int64
    assert minitl.tensor([1, 2], dtype="float64").dtype == np.float64
    assert minitl.tensor([[1.0]], requires_grad=True).requires_grad
    assert isinstance(Tensor(np.float32(3)).data, np.ndarray)


def test_integer_tensors():
    """They hold labels and indices; they have no gradient."""
    labels = Tensor(np.array([1, 0]))
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    ops.cross_entropy(x, labels).backward()
    assert labels.grad is None and x.grad.shape == (2, 3)
    assert not (labels + 1).requires_grad and (labels + 1).dtype == np.int64
    for dtype in ("int64", "bool", "float16"):
        with pytest.raises(TypeError, match=f"only float32 and float64 have gradients, got {dtype}"):
            Tensor(np.zeros(3, dtype), requires_grad=True)


@pytest.mark.parametrize("data", [[1.0], 1.0, "a", None])
def test_tensor_takes_arrays_only(data):
    with pytest.raises(TypeError, match=rf"holds an array of .*, got {type(data).__name__}; see minitl\.tensor"):
        Tensor(data)


@pytest.mark.parametrize("data", [np.array(["a"]), np.array([None]), np.array([1j])], ids=["str", "object", "complex"])
def test_tensor_takes_real_numbers_only(data):
    with pytest.raises(TypeError, match=rf"real numbers or booleans, got {data.dtype}\[1\]"):
        Tensor(data)


def test_truth():
    assert leaf(2.0) and not leaf(0.0) and not leaf(3.0).sum() * 0
    with pytest.raises(ValueError, match="ambiguous"):
        bool(leaf(1.0, 2.0))


def test_backward_of_a_constant():
    with pytest.raises(RuntimeError, match=r"made under no_grad, or from none with requires_grad"):
        Tensor(np.ones(1)).backward()


def test_repr():
    x = leaf(1.0)
    assert repr(x) == "Tensor([1.], shape=(1,), dtype=float64, requires_grad=True)"
    assert "made by mul" in repr(x * x) and "grad" not in repr(Tensor(np.ones(1)))


@pytest.fixture
def shifted(monkeypatch):
    """An op x + y whose forms add 0 (plain), 10 (cpu) and 100 (cuda)."""

    def form(extra):
        def shifted(x, y):
            return x + y + extra, lambda dz: (dz, dz)

        return shifted

    monkeypatch.setitem(OPS, "shifted", None)  # so that it is gone after the test
    monkeypatch.setitem(PLAIN, "shifted", None)
    del PLAIN["shifted"]
    for device, extra in (("cpu", 10), ("cuda", 100)):
        monkeypatch.setitem(OVERRIDES[device], "shifted", form(extra))
    return op(form(0))


def test_overrides(shifted, xp):
    """Each runs where the arrays live, also next to a number."""
    x, extra = Tensor(xp.ones(2), requires_grad=True), 10 if xp is np else 100
    for y in (shifted(x, x), shifted(x, 1.0), shifted(1.0, x)):
        assert y.data.tolist() == [2.0 + extra] * 2 and y.node.name == "shifted"


def test_plain(shifted, xp):
    """Inside, and in threads that take over the context, the plain form runs; afterwards the fast one again."""
    x = Tensor(xp.ones(2), requires_grad=True)
    with plain():
        assert shifted(x, x).data.tolist() == [2, 2]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(contextvars.copy_context().run, shifted, x, x).result().data.tolist() == [2, 2]
        with pytest.raises(ZeroDivisionError), plain():
            1 / 0  # noqa: B018
        assert shifted(x, x).data.tolist() == [2, 2]
    assert shifted(x, x).data.tolist() != [2, 2]


def test_what_a_person_puts_into_ops_comes_first(shifted, monkeypatch, xp):
    """Before every override, on every device, and in plain mode."""
    monkeypatch.setitem(OPS, "shifted", lambda x, y: (x - y, lambda dz: (dz, -dz)))
    x = Tensor(xp.ones(2))
    assert shifted(x, x).data.tolist() == [0, 0]
    with plain():
        assert shifted(x, x).data.tolist() == [0, 0]
    assert form("shifted", "cpu") is OPS["shifted"]
    monkeypatch.setitem(OPS, "shifted", PLAIN["shifted"])
    assert form("shifted", "cuda") is OVERRIDES["cuda"]["shifted"]


def test_an_op_of_an_existing_name_replaces_it(monkeypatch):
    """Also where the package has a faster form; the plain form stays what it was."""
    monkeypatch.setitem(OPS, "gelu", OPS["gelu"])  # so that it is back after the test
    before = PLAIN["gelu"]

    @op
    def gelu(x):
        return 0 * x + 7, lambda dy: 3 * dy

    x = leaf(1.0, -2.0)
    y = gelu(x)
    y.sum().backward()
    assert y.data.tolist() == ops.gelu(x).data.tolist() == [7, 7] and x.grad.tolist() == [3, 3]
    assert PLAIN["gelu"] is before


# --- unbroadcast ---


def test_unbroadcast():
    g = np.arange(24.0).reshape(2, 3, 4)
    assert unbroadcast(g, (2, 3, 4)) is g
    assert (unbroadcast(g, (3, 4)) == g.sum(0)).all()
    assert (unbroadcast(g, (3, 1)) == g.sum((0, 2)).reshape(3, 1)).all()
    assert (unbroadcast(g, (1, 1, 4)) == g.sum((0, 1)).reshape(1, 1, 4)).all()
    assert unbroadcast(g, ()).shape == () and unbroadcast(g, ()) == g.sum()


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 1), (4, 3), (2, 1, 3)])
def test_unbroadcast_refuses_other_shapes(shape):
    with pytest.raises(RuntimeError, match=r"softmax: a gradient of shape \(2, 3, 4\) for an input of shape"):
        unbroadcast(np.ones((2, 3, 4)), shape, "softmax")


@pytest.mark.parametrize(
    "made", [None, (np.ones(2),), np.ones((2, 2)), (1.0, None)], ids=["none", "one", "rows", "number"]
)
def test_an_op_returns_its_value_and_backward(made, monkeypatch):
    monkeypatch.setitem(OPS, "neg", lambda x: made)
    with pytest.raises(TypeError, match=r"neg\(float64\[2\]\): an op returns two things"):
        ops.neg(np.ones(2))
