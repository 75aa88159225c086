"""Cost of a model, computed from its configuration: parameters, multiply-adds, memory. No weights are allocated.

The letters are the paper's: d width, m MLP width, h heads, n tokens in a block, T time steps, P pixels of the token
grid, S learned tokens of a frame. A multiply-add counts as 1. The paper's GFLOPs are multiply-adds plus elementwise
work inside the blocks: 2 for each entry of a softmax, 5 for each entry of a GELU or a LayerNorm.
"""

import itertools
import math
from dataclasses import asdict, astuple, dataclass, replace

from .nn import ViTConfig, X21DConfig
from .nn.reduce import REDUCTIONS


@dataclass(frozen=True)
class Cost:
    """Cost of one image or clip. Costs can be added and multiplied: ``cost + cost``, ``3 * cost``."""

    params: int = 0
    """learned parameters"""
    macs: int = 0
    """multiply-adds of one forward pass"""
    elementwise: int = 0
    """operations of softmax, GELU and LayerNorm in the blocks, as the paper counts them"""
    kept: int = 0
    """numbers kept for backward without dropout; four bytes each in float32"""

    def __add__(self, other):
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __rmul__(self, times):
        return Cost(*(times * a for a in astuple(self)))

    @property
    def flops(self):
        """FLOPs as the paper counts them."""
        return self.macs + self.elementwise


@dataclass(frozen=True)
class Part:
    """A part of a model that occurs ``times`` times and has ``tokens`` outputs; ``cost`` is that of one occurrence."""

    name: str
    times: int
    tokens: int
    cost: Cost


def count(config, spec):
    """Return the Parts of the ``ViT`` or ``X21D`` of a configuration and a DataSpec, in the order of the forward pass.

    Their ``params`` add up to the model's ``num_parameters()``; nothing is allocated. Activations of an X21D are not
    counted, and its batch norms cost nothing: the layers before them can absorb them.
    Raises InputError if the configuration does not fit ``spec``.
    """
    return _count_x21d(config, spec) if isinstance(config, X21DConfig) else _count_vit(config, spec)


def _count_vit(config, spec):
    T, rows, columns = config.grid(spec)
    d, P, S = config.dim, rows * columns, config.num_tokens
    later = config.layers - config.loc

    def blocks(times, n):
        cost = block(n, d, config.mlp_dim, config.heads, scaled=config.tokenizer == "merge" and n == T * S)
        return Part("block", times, n, replace(cost, kept=n * d) if config.recompute else cost)

    parts, left = [Part("patch embedding", 1, T * P, STEMS[config.stem](config, spec, T * P) + Cost(T * P * d))], T * P
    if config.tokenizer == "none":
        parts += [blocks(config.layers, T * P)]
    elif config.tokenizer in REDUCTIONS:
        cost = block(T * P, d, config.mlp_dim, config.heads, left=T * S, scaled=True)
        cost += TOKENIZERS[config.tokenizer](config, T, P, S, d)
        reducing, left = Part(f"block: {config.tokenizer}", 1, T * S, cost), T * S
        parts += [blocks(config.loc, T * P), reducing, blocks(later - 1, T * S)]
    else:
        tokenizer, repeats = TOKENIZERS[config.tokenizer](config, T, P, S, d), 1 if config.back == "none" else later
        parts += [blocks(config.loc, T * P), Part(f"tokenizer: {config.tokenizer}", repeats, T * S, tokenizer)]
        parts += [blocks(later, T * S)]
        if config.back == "none":
            left = T * S
        else:
            parts += [Part(f"way back: {config.back}", later, T * P, BACKS[config.back](config, T, P, S, d))]
    head = norm(left, d) + linear(1, d, spec.num_classes)  # the mean in between is free
    if config.head_pool == "sequence":
        head += linear(left, d, 1, bias=False) + pooling(left, 1, d) + Cost(kept=-left * d)
    parts += [Part("head", 1, 1, head)]
    return [part for part in parts if part.times]


def total(parts):
    """Return the Cost of all Parts together."""
    return sum((part.times * part.cost for part in parts), Cost())


def linear(n, i, o, bias=True):
    """Product of n rows with a matrix (i, o)."""
    return Cost(params=i * o + o * bias, macs=n * i * o, kept=n * i)


def norm(n, d):
    """LayerNorm of n rows; keeps the normalized rows and their standard deviations."""
    return Cost(params=2 * d, kept=n * d + n)


def gelu(n):
    """GELU of n numbers; keeps them and their tanh."""
    return Cost(kept=2 * n)


def block(n, d, m, h, e=None, left=None, scaled=False):
    """Encoder block: 4nd² + 2ndm + 2n²d, 4d² + 2dm + 9d + m parameters; ``e`` is the width of all heads, else d.

    ``left`` tokens have an MLP, else all; ``scaled`` is True if attention keeps scaled queries as well.
    """
    e, left = e or d, left or n
    attention = linear(n, d, 3 * e) + Cost(macs=2 * n * n * e, kept=(3 + scaled) * n * e + h * n * n) + linear(n, e, d)
    mlp = linear(left, d, m) + gelu(left * m) + linear(left, m, d)
    elementwise = Cost(elementwise=2 * h * n * n + 5 * n * d + 5 * left * (m + d))
    return norm(n, d) + attention + norm(left, d) + mlp + elementwise


def conv(n, k, i, o):
    """k x k convolution at n pixels, stride 1, zero padding, no bias; keeps its input."""
    return Cost(params=k * k * i * o, macs=n * k * k * i * o, kept=n * i)


def stem(c, s):
    """Convolutions of one frame, each followed by max pooling to half the size and ReLU."""
    n, halvings = math.prod(s.image_size), c.patch_size.bit_length() - 1
    cost = Cost(kept=n * s.channels)
    for i, o in itertools.pairwise([s.channels, *[c.stem_width] * (halvings - 1), c.dim]):
        kept = n // 4 * o  # by ReLU and the next convolution together, and a byte for each by pooling
        cost += replace(conv(n, 3, i, o), kept=kept + kept // 4)
        n //= 4
    return cost


STEMS = {  # of the config c, the DataSpec s, n tokens
    "patch": lambda c, s, n: linear(n, c.tubelet * c.patch_size**2 * s.channels, c.dim),
    "conv": lambda c, s, n: frames(s.frames, stem(c, s)),
}


def pooling(P, S, d):
    """Z = A X; keeps A and X."""
    return Cost(macs=P * S * d, kept=P * (S + d))


def cross_attention(T, queries, n, k, d, h):
    """Attention of n rows to k rows in each of T frames, without an MLP; ``queries`` rows are projected in total."""
    macs = queries * d * d + T * (n * d * d + 2 * k * d * d + 2 * n * k * d)
    return Cost(4 * d * d + 4 * d, macs, kept=2 * queries * d + T * (3 * k * d + h * n * k + n * d))


def frames(T, cost):
    """Cost of applying the same weights to each of T frames."""
    return Cost(cost.params, T * cost.macs, T * cost.elementwise, T * cost.kept)


def learner(c, P, S, d):
    """TokenLearner on one frame: 9PdS + 27PS² + PSd; version 1.1: 64Pd + 64PS + PSd with 64 hidden units."""
    if c.version == "1.0":
        maps = conv(P, 3, d, S) + 3 * (gelu(P * S) + conv(P, 3, S, S))
    else:
        maps = linear(P, d, c.hidden) + gelu(P * c.hidden) + linear(P, c.hidden, S)
    maps += Cost(kept=0 if c.pre_norm else -P * d)  # without the norm their input is X, which pooling keeps anyway
    return maps + c.pre_norm * norm(P, d) + pooling(P, S, d)


TOKENIZERS = {  # of the config c, T frames of P pixels, S tokens each, width d
    "learner": lambda c, T, P, S, d: frames(T, learner(c, P, S, d)),
    "pool": lambda c, T, P, S, d: Cost(),
    "static": lambda c, T, P, S, d: frames(T, pooling(P, S, d)) + Cost(params=S * P, kept=(1 - T) * S * P),
    "dense": lambda c, T, P, S, d: frames(T, linear(1, P * d, S * d)),
    "mean-dense": lambda c, T, P, S, d: frames(T, linear(1, d, S * d)),
    "query": lambda c, T, P, S, d: cross_attention(T, S, S, P, d, c.heads) + Cost(params=S * d),
    # 7x7 convolution of two channels, the maximum and the mean, and batch norm
    "gate": lambda c, T, P, S, d: frames(T, conv(P, 7, 2, S) + Cost(params=2 * S, kept=P * S) + pooling(P, S, d)),
    "merge": lambda c, T, P, S, d: frames(T, pooling(P, S, d) + Cost(macs=P // 2 * (P - P // 2) * d // c.heads)),
    "topk": lambda c, T, P, S, d: frames(T, pooling(P, S, d) + Cost(kept=S * P + P + S)),
}


def fuser(c, T, P, S, d):
    """TokenFuser: (TS)²d to mix the tokens of a clip, or TS²d frame by frame, then T(PdS + PSd)."""
    mixed, times = (T * S, 1) if c.fuser_mix == "all" else (S, T)
    mix = frames(times, linear(d, mixed, mixed)) + 2 * c.fuser_norm * norm(T * S, d)
    if c.fuser_beta == "linear":
        beta = linear(T * P, d, S, bias=False)
    else:
        beta = linear(T * P, d, c.hidden) + gelu(T * P * c.hidden) + linear(T * P, c.hidden, S)
    return mix + norm(T * P, d) + beta + Cost(macs=T * P * S * d, kept=T * S * (P + d))


def reproject(c, T, P, S, d):
    """Attention of all pixels to all tokens, without an MLP: 2TPd² + 2TSd² + 2(TP)(TS)d."""
    grid = T * P * d if c.tokenizer in ("pool", "mean-dense") else 0  # the others keep it anyway
    return cross_attention(1, T * P, T * P, T * S, d, c.heads) + Cost(kept=grid)


BACKS = {
    "fuser": fuser,
    "unpool": lambda c, T, P, S, d: Cost(macs=T * P * S * d, kept=T * S * d),
    "reproject": reproject,
}


def _count_x21d(config, spec):
    T, (H, W), channels, parts = spec.frames, spec.image_size, spec.channels, []

    def part(name, cost):
        return Part(name, 1, T * H * W, replace(cost, kept=0))

    def block(width, last):
        inner, n = config.expansion * width, T * H * W
        sides = linear(n, width, inner, bias=False) + linear(n, inner, width, bias=False)
        space = frames(T, conv(H * W, 3, inner, inner))
        time = Cost(3 * inner**2, n * 3 * inner**2) if last == "conv" else mixer(inner, H * W, config.num_tokens)
        return part(f"block: {last}", sides + space + time + Cost(params=2 * (3 * inner + width)))

    def mixer(d, P, S):
        learner = norm(P, d) + conv(P, 3, d, S) + pooling(P, S, d)
        attention = 3 * linear(T * S, d, d) + Cost(macs=2 * (T * S) ** 2 * d)
        return frames(T, learner) + attention + fuser(ViTConfig(), T, P, S, d)

    for width in config.widths:
        H, W = -(-H // 2), -(-W // 2)
        down = frames(T, conv(H * W, 3, channels, width))
        parts += [part("convolution", down + Cost(params=2 * width)), block(width, "conv")]
        channels = width
    return [*parts, block(width, config.last), part("head", linear(1, width, spec.num_classes))]


def table(parts):
    """Return the Parts and their total as lines of text, with a column for each kind of cost."""
    whole = total(parts)
    rows = [("part", "times", "tokens", "parameters", "multiply-adds", "elementwise", "activations")]
    rows += [(p.name, p.times, p.tokens, *_cells(p.times * p.cost)) for p in parts]
    rows += [("total", "", "", *_cells(whole))]
    lines = [f"{row[0]:22}{row[1]:>6}{row[2]:>8}" + "".join(f"{cell:>15}" for cell in row[3:]) for row in rows]
    lines.insert(-1, "-" * len(lines[0]))
    if whole.elementwise:
        lines += ["", f"{short(whole.flops)}FLOPs as the paper counts them: multiply-adds and elementwise together"]
    return "\n".join(lines)


def as_dict(parts):
    """Return the Parts, each with the cost of one occurrence, and their total as a dict for JSON."""

    def numbers(cost):
        sizes = asdict(cost)
        return sizes | {"flops": cost.flops, "activation_bytes": 4 * sizes.pop("kept")}

    listed = [{"name": p.name, "times": p.times, "tokens": p.tokens, **numbers(p.cost)} for p in parts]
    return {"parts": listed, "total": numbers(total(parts))}


def _cells(cost):
    numbers = (cost.params, ""), (cost.macs, ""), (cost.elementwise, ""), (4 * cost.kept, "B")
    return [short(n, unit) if n else "-" for n, unit in numbers]


def short(n, unit=""):
    """Format a number with four digits and a prefix: 55378163712 -> ``55.38 G``."""
    power = min(max(math.floor(math.log10(n) / 3 + 1e-5), 0), 4) if n else 0
    return f"{n / 1000**power:.4g} {'kMGT'[power - 1] if power else ''}{unit}".rstrip()
