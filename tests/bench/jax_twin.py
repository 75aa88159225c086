"""minitl's ViT as pure functions of its weights, compiled by JAX: what `python -m tests.bench` shows beside PyTorch.

It keeps all its tokens, or reduces them by TokenLearner 1.1.
"""

import functools

import jax
import jax.numpy as jnp


class Jax:
    """A compiled training step and inference on one batch, as ``contestant.Minitl`` has them."""

    def __init__(self, model, images, labels, threads, lr, decay, clip):  # as many threads as cores it may use
        weights = {name: jnp.array(p.data) for name, p in model.named_parameters()}
        zeros = [{name: jnp.zeros_like(w) for name, w in weights.items()} for _ in range(2)]
        self.state, self.images, self.labels = (weights, *zeros, 0), jnp.array(images), jnp.array(labels)
        update = functools.partial(_step, config=model.config, grid=model.grid, lr=lr, decay=decay, clip=clip)
        self.compiled = jax.jit(update, donate_argnums=0)
        self.forward = jax.jit(functools.partial(logits, config=model.config, grid=model.grid))

    def mode(self, training):
        """There is nothing to set."""

    def step(self):
        self.state, loss = jax.block_until_ready(self.compiled(self.state, self.images, self.labels))
        return loss.item()

    def infer(self):
        return self.forward(self.state[0], self.images).block_until_ready()


def logits(w, images, config, grid):
    """Of the weights ``w``, by their names in minitl, and images or clips."""
    x = _linear(w, "patch_embed", _patches(images, config, grid)) + w["pos_embed"]
    for i in range(config.layers):
        if config.tokenizer != "none" and i == config.loc:
            x = _token_learner(w, x, config, grid)
        x = _block(w, f"blocks.{i}.", x, config.heads)
    return _linear(w, "head", _norm(w, "norm", x).mean(1))


def _step(state, images, labels, config, grid, lr, decay, clip):
    w, m, v, t = state

    def loss_of(w):
        log_p = jax.nn.log_softmax(logits(w, images, config, grid))
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

    loss, grads = jax.value_and_grad(loss_of)(w)
    norm = jnp.sqrt(sum((g * g).sum() for g in grads.values()))
    grads = {name: g * jnp.minimum(1, clip / (norm + 1e-6)) for name, g in grads.items()}
    t += 1
    m = {name: 0.9 * m[name] + 0.1 * g for name, g in grads.items()}
    v = {name: 0.999 * v[name] + 0.001 * g * g for name, g in grads.items()}
    for name, p in w.items():
        p = p * (1 - lr * decay) if p.ndim >= 2 else p
        w = w | {name: p - lr * m[name] / (1 - 0.9**t) / (jnp.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)}
    return (w, m, v, t), loss


def _patches(x, c, grid):
    T, rows, columns = grid
    x = x.reshape(len(x), T, c.tubelet, rows, c.patch_size, columns, c.patch_size, -1)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(x), T * rows * columns, -1)


def _linear(w, name, x):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def _norm(w, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _mlp(w, name, x):
    return _linear(w, f"{name}.fc2", jax.nn.gelu(_linear(w, f"{name}.fc1", x), approximate=True))


def _block(w, path, x, heads):
    B, N, C = x.shape
    qkv = _linear(w, f"{path}attn.qkv", _norm(w, f"{path}norm1", x))
    q, k, v = qkv.reshape(B, N, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    A = jax.nn.softmax(q @ k.swapaxes(2, 3) / (C // heads) ** 0.5)
    x += _linear(w, f"{path}attn.proj", (A @ v).swapaxes(1, 2).reshape(B, N, C))
    return x + _mlp(w, f"{path}mlp", _norm(w, f"{path}norm2", x))


def _token_learner(w, x, config, grid):
    B, _, C = x.shape
    x = x.reshape(B * grid[0], -1, C)
    y = _norm(w, "tokenizer.norm", x) if config.pre_norm else x
    A = jax.nn.softmax(_mlp(w, "tokenizer.mlp", y), 1).swapaxes(1, 2)
    return (A @ x).reshape(B, -1, C)
