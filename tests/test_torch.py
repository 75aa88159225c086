"""Every op, layer and a whole model against PyTorch, where it is installed: values and all gradients."""

import dataclasses

import cases
import numpy as np
import pytest
from cases import CASES

from minitl import OPS, Tensor, nn, ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is what these tests compare with")
F = torch.nn.functional

TOLERANCES = {"float64": {"rtol": 1e-10, "atol": 1e-11}, "float32": {"rtol": 2e-4, "atol": 2e-5}}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)


def first(x):
    """Channels last -> channels first, as PyTorch has it."""
    return x.movedim(-1, 1)


def last(x):
    return x.movedim(1, -1)


def conv2d(x, W, b=None, **options):
    return last(F.conv2d(first(x), W.permute(3, 2, 0, 1), b, **options))


def batch_norm(x, weight, bias, running_mean, running_var, training, eps=1e-5):
    mean, var = torch.as_tensor(running_mean), torch.as_tensor(running_var)
    return last(F.batch_norm(first(x), mean, var, weight, bias, training, 0.1, eps))


def attention(qkv, b=0, *, num_heads, dropout=0.0, rng=None):
    qkv = qkv + b
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    q, k, v = (part.reshape(B, N, num_heads, -1).transpose(1, 2) for part in qkv.split(C, -1))
    if not dropout:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C)
    A = torch.softmax(q @ k.mT / (C // num_heads) ** 0.5, -1)
    return (mask(A, A.shape, dropout, rng) @ v).transpose(1, 2).reshape(B, N, C)


def vector_attention(q, k, v):
    """Each channel of its own: a batch of B·C problems with one channel and one head."""
    q, k, v = (x.mT.unsqueeze(-1) for x in (q, k, v))  # (B, C, N, 1)
    return F.scaled_dot_product_attention(q, k, v).squeeze(-1).mT


def mask(x, shape, p, rng):
    """``x`` with entries dropped as the op's own generator says; PyTorch draws other masks."""
    return x * torch.as_tensor(cases.uniform(rng, tuple(shape)) >= p) / (1 - p) if p else x


def cross_entropy(logits, targets, label_smoothing=0.0):
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


TORCH = {
    "add": torch.add,
    "attention": attention,
    "avg_pool2d": lambda x, **options: last(F.avg_pool2d(first(x), **options)),
    "batch_norm": batch_norm,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "concatenate": lambda *xs, axis=0: torch.cat(xs, axis),
    "conv2d": conv2d,
    "cross_entropy": cross_entropy,
    "div": torch.div,
    "drop_path": lambda x, p, rng=None: mask(x, (len(x),) + (1,) * (x.ndim - 1), p, rng),
    "dropout": lambda x, p, rng=None: mask(x, x.shape, p, rng),
    "exp": torch.exp,
    "gelu": lambda x, approximate="tanh": F.gelu(x, approximate=approximate),
    "getitem": lambda x, index: x.flatten()[torch.tensor(np.arange(x.numel()).reshape(tuple(x.shape))[index].copy())],
    "global_avg_pool": lambda x: x.flatten(1, -2).mean(1),
    "layer_norm": lambda x, weight, bias, eps=1e-6: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "linear": lambda x, W, b=None: F.linear(x, W.T, b),
    "linear_gelu": lambda x, W, b: F.gelu(F.linear(x, W.T, b), approximate="tanh"),
    "log": torch.log,
    "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "matmul": torch.matmul,
    "max": lambda x, axis=(), keepdims=False: torch.amax(x, axis, keepdims),
    "max_pool2d": lambda x, **options: last(F.max_pool2d(first(x), **options)),
    "maximum": torch.maximum,
    "mean": lambda x, axis=None, keepdims=False: torch.mean(x, axis, keepdims),
    "mul": torch.mul,
    "neg": torch.neg,
    "power": lambda x, exponent: torch.pow(x, exponent),
    "recompute": lambda x, fn: torch.tanh(x * x),  # what the row in cases.py computes twice
    "relu": torch.relu,
    "residual": lambda x, y, b=0, p=0.0, rng=None: x + mask(y + b, (len(y),) + (1,) * (y.ndim - 1), p, rng),
    "reshape": lambda x, shape: torch.reshape(x, shape),
    "sigmoid": torch.sigmoid,
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "sqrt": torch.sqrt,
    "sub": torch.sub,
    "sum": lambda x, axis=None, keepdims=False: torch.sum(x, axis, keepdims),
    "tanh": torch.tanh,
    "token_pool": lambda A, x, mean=False: A @ x / (x.shape[1] if mean else 1),
    "transpose": lambda x, axes=None: x.permute(*(axes or range(x.ndim)[::-1])),
    "vector_attention": vector_attention,
    "where": lambda x, y, condition: torch.where(torch.as_tensor(condition), x, y),
}


def to_torch(x):
    """A copy, so that nothing is shared, which asks for a gradient when it is a float."""
    return torch.tensor(x, requires_grad=x.dtype.kind == "f")


def compare(y, y_torch, pairs, tolerance):
    """Values, and after a random cotangent the gradients of all (name, Tensor, PyTorch gradient) in ``pairs()``."""
    np.testing.assert_allclose(y.data, y_torch.detach().numpy(), **tolerance)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    y.backward(dy)
    y_torch.backward(torch.tensor(dy))
    for name, tensor, grad in pairs():
        np.testing.assert_allclose(tensor.grad, grad.numpy(), err_msg=name, **tolerance)


def test_every_op_is_compared():
    assert set(TORCH) == set(OPS)


@both_dtypes
@pytest.mark.parametrize("case", CASES, ids=str)
def test_op(case, dtype):
    arrays = case.arrays(np, dtype)
    tensors = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    theirs = [to_torch(x) for x in arrays]
    y = getattr(ops, case.op)(*tensors, **case.fresh_options(np, dtype))
    y_torch = TORCH[case.op](*theirs, **case.fresh_options(np, dtype))
    floats = [(f"input {i}", a, b) for i, (a, b) in enumerate(zip(tensors, theirs, strict=True)) if a.requires_grad]
    compare(y, y_torch, lambda: [(name, a, b.grad) for name, a, b in floats], TOLERANCES[dtype])


# --- layers: (ours, PyTorch's, shape, {our parameter: how PyTorch's array becomes ours}) ---

T, KERNEL, SAME = (lambda w: w.T), (lambda w: w.permute(2, 3, 1, 0)), (lambda w: w)


def encoder_layer(dim, heads, hidden):
    def activation(x):
        return F.gelu(x, approximate="tanh")

    options = {"dropout": 0.0, "activation": activation, "layer_norm_eps": 1e-6, "batch_first": True}
    return torch.nn.TransformerEncoderLayer(dim, heads, hidden, norm_first=True, **options)


BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
}
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), lambda: torch.nn.Linear(4, 3), (2, 5, 4)),
    "conv": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
        lambda: torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
        (2, 5, 6, 4),
    ),
    "layer norm": (lambda: nn.LayerNorm(4), lambda: torch.nn.LayerNorm(4, eps=1e-6), (2, 3, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(4), lambda: torch.nn.BatchNorm2d(4), (3, 2, 5, 4)),
    "batch norm, eval": (lambda: nn.BatchNorm2d(4).eval(), lambda: torch.nn.BatchNorm2d(4).eval(), (3, 2, 5, 4)),
    "encoder block": (lambda: nn.EncoderBlock(6, 3, 5), lambda: encoder_layer(6, 3, 5), (2, 4, 6)),
}


def layout(w):
    """PyTorch's (out, in, ...) as ours (..., in, out)."""
    return w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T if w.ndim == 2 else w


@both_dtypes
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, dtype, rng):
    make, make_torch, shape = LAYERS[name]
    ours, theirs = make().to(dtype=dtype), make_torch().to(getattr(torch, dtype))
    own = dict(theirs.named_parameters())
    pairs = [(path, p, own[BLOCK.get(path, path)]) for path, p in ours.named_parameters()]
    for _, p, q in pairs:  # also move norms away from 1 and 0
        q.data += 0.3 * torch.tensor(rng.standard_normal(tuple(q.shape)))
        p.data = layout(q.data).numpy().copy()
    x = rng.standard_normal(shape).astype(dtype)
    a, b = Tensor(x, requires_grad=True), to_torch(x)
    images = name.startswith(("conv", "batch"))
    y, y_torch = ours(a), last(theirs(first(b))) if images else theirs(b)
    grads = [("input", a, lambda: b.grad)] + [(path, p, lambda q=q: layout(q.grad)) for path, p, q in pairs]
    compare(y, y_torch, lambda: [(path, p, grad()) for path, p, grad in grads], TOLERANCES[dtype])
    for buffer in ("running_mean", "running_var") if name.startswith("batch") else ():
        np.testing.assert_allclose(getattr(ours, buffer), getattr(theirs, buffer).numpy(), **TOLERANCES[dtype])


# --- a whole ViT with TokenLearner, written once more ---


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def linear(x, w, name):
    return F.linear(x, w[f"{name}.weight"].T, w[f"{name}.bias"])


def mlp(x, w, name):
    return linear(F.gelu(linear(x, w, f"{name}.fc1"), approximate="tanh"), w, f"{name}.fc2")


def token_learner(x, w, config):
    """(B, H, W, C) -> (B, S, C)"""
    y = norm(x, w, "tokenizer.norm")
    if config.version == "1.1":
        A = torch.softmax(mlp(y, w, "tokenizer.mlp").flatten(1, 2), 1).mT
        return A @ x.flatten(1, 2)
    kernels = [w[name] for name in w if name.startswith("tokenizer.convs.")]
    for i, kernel in enumerate(kernels):
        y = F.gelu(y, approximate="tanh") if i else y
        y = conv2d(y, kernel, padding=1)
    tokens = torch.einsum("bhws,bhwc->bsc", torch.sigmoid(y), x)
    return tokens / (x.shape[1] * x.shape[2]) if config.pool == "mean" else tokens


def vit(images, w, config):
    p, (_, rows, columns) = config.patch_size, config.grid(SPEC)
    patches = F.unfold(first(images), p, stride=p).mT  # (B, N, C·p·p)
    patches = patches.unflatten(2, (SPEC.channels, p * p)).mT.flatten(2)  # (B, N, p·p·C)
    x = linear(patches, w, "patch_embed") + w["pos_embed"]
    for i in range(config.layers):
        if i == config.loc:
            x = token_learner(x.unflatten(1, (rows, columns)), w, config)
        name = f"blocks.{i}"
        x = x + linear(
            attention(linear(norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv"), num_heads=config.heads),
            w,
            f"{name}.attn.proj",
        )
        x = x + mlp(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp")
    return linear(norm(x, w, "norm").mean(1), w, "head")


SPEC = nn.DataSpec((16, 24), num_classes=8)
CONFIG = nn.ViTConfig(dim=24, layers=3, heads=3, mlp_dim=48, num_tokens=5, loc=1)


@both_dtypes
@pytest.mark.parametrize(
    "options", [{"version": "1.1"}, {"version": "1.0"}, {"version": "1.0", "pool": "sum"}], ids=str
)
def test_vit(options, dtype, rng):
    """In float32 the losses agree to 1e-6; in float64 all is the same number."""
    config = dataclasses.replace(CONFIG, **options)
    model = nn.ViT(config, SPEC, rng).to(dtype=dtype)
    model.head.weight.data[...] = 0.3 * rng.standard_normal(model.head.weight.shape)
    x, labels = rng.standard_normal((8, 16, 24, 3)).astype(dtype), rng.integers(0, 8, 8)
    w = {name: to_torch(array) for name, array in model.state_dict().items()}

    loss = ops.cross_entropy(model(x), labels, label_smoothing=0.1)
    loss_torch = F.cross_entropy(vit(torch.tensor(x), w, config), torch.tensor(labels), label_smoothing=0.1)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(loss_torch.item(), rel=1e-6 if dtype == "float32" else 1e-12)
    loss.backward()
    loss_torch.backward()
    tolerance = 2e-5 if dtype == "float32" else 1e-10
    largest = max(float(x.grad.abs().max()) for x in w.values())
    for name, p in model.named_parameters():
        grad = w[name].grad.numpy()
        size = max(np.abs(grad).max(), 1e-2 * largest)  # a bias in front of a softmax over pixels has none but noise
        assert np.abs(p.grad - grad).max() <= tolerance * size, name


def test_references_agree_with_torch(rng):
    """The loops of ``cases.py`` are themselves held to PyTorch here, on one more shape each."""
    qkv, x, W = rng.standard_normal((1, 3, 12)), rng.standard_normal((1, 4, 3, 2)), rng.standard_normal((2, 3, 2, 4))
    np.testing.assert_allclose(cases.attention(qkv, num_heads=2), attention(torch.tensor(qkv), num_heads=2).numpy())
    np.testing.assert_allclose(
        cases.conv2d(x, W, padding=1), conv2d(torch.tensor(x), torch.tensor(W), padding=1).numpy()
    )
