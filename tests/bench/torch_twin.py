"""minitl's models made of PyTorch's own layers, with the same weights: what `python -m tests.bench` compares with.

``twin`` makes the PyTorch module of a minitl module. Tokens and images are channels last, as in minitl. The X(2+1)D
model has its clips as PyTorch likes them, (B, C, T, H, W), and makes each of its convolutions a ``Conv3d``: no slower
in any memory format than a ``Conv2d`` of folded frames.
"""

import functools

import torch
import torch.nn.functional as F

from minitl import nn, ops
from minitl.nn import vit
from minitl.nn.bottleneck import SpaceConv, TimeConv, TokenMixer


class Torch:
    """PyTorch eager: a training step and an inference on one batch, as ``contestant.Minitl`` has them.

    ``gelu`` is "tanh", which is what minitl computes, or "none", the exact form. ``memory_format`` is that of an
    X(2+1)D model's convolutions, "contiguous_format" or "channels_last_3d".
    """

    device = "cpu"

    def __init__(self, model, images, labels, threads, lr, decay, clip, gelu="tanh", memory_format="contiguous_format"):
        torch.set_num_threads(threads)
        layout = {"memory_format": getattr(torch, memory_format)}
        self.model, self.gelu, self.clip = twin(model, gelu).to(self.device), gelu, clip
        self.model.apply(lambda m: m.to(**layout) if isinstance(m, torch.nn.Conv3d) else m)
        if isinstance(model, nn.X21D):
            images = images.transpose(0, 4, 1, 2, 3)
        self.images = torch.tensor(images, device=self.device).contiguous(**layout)
        self.labels = torch.tensor(labels, device=self.device)
        matrices, vectors = ([p for p in self.model.parameters() if (p.ndim >= 2) == two] for two in (True, False))
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)

    def mode(self, training):
        self.model.train(training)

    def loss(self):
        return F.cross_entropy(self.model(self.images), self.labels)

    def step(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def infer(self):
        return self.model(self.images)

    def update(self):
        self.optimizer.step()

    def layer(self, layer, options, arrays):
        """Of a minitl layer or op: two functions that do it forward, and forward and backward."""
        twins = {ops.attention: attention, ops.token_pool: token_pool, ops.cross_entropy: F.cross_entropy}
        twins[ops.gelu] = functools.partial(F.gelu, approximate=self.gelu)
        layer = twin(layer, self.gelu) if isinstance(layer, nn.Module) else functools.partial(twins[layer], **options)
        inputs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
        wanted = [x for x in inputs if x.requires_grad]
        wanted += layer.parameters() if isinstance(layer, torch.nn.Module) else []
        dy = torch.ones_like(layer(*inputs))

        def backward():
            torch.autograd.grad(layer(*inputs), wanted, dy)

        return torch.inference_mode()(lambda: layer(*inputs)), backward


class TorchOnGPU(Torch):
    """The same on a GPU, eager, or ``compiled`` into CUDA graphs; bfloat16 as PyTorch chooses, by autocast."""

    device = "cuda"

    def __init__(self, *args, precision="fp32", compiled=False, **training):
        super().__init__(*args, **training)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self.autocast = functools.partial(torch.autocast, self.device, torch.bfloat16, precision == "bf16")
        self.compute = torch.compile(super().loss, mode="reduce-overhead") if compiled else super().loss
        self.event = functools.partial(torch.cuda.Event, enable_timing=True)
        self.between = torch.cuda.Event.elapsed_time

    def loss(self):
        with self.autocast():
            return self.compute()


def twin(module, gelu="tanh"):
    """The PyTorch module that computes what a minitl ``module`` does, with copies of its weights."""
    return TWINS[type(module)](module, gelu)


def parameter(p):
    return torch.nn.Parameter(torch.tensor(p.data))


def linear(m, gelu=None):
    layer = torch.nn.Linear(*m.weight.shape, bias=m.bias is not None)
    return _filled(layer, weight=m.weight.data.T, **({} if m.bias is None else {"bias": m.bias.data}))


def layer_norm(m, gelu=None):
    return _filled(torch.nn.LayerNorm(m.weight.size, m.eps), weight=m.weight.data, bias=m.bias.data)


def conv(m, gelu=None):
    """Of images (B, C, H, W) in the memory format channels_last, without bias."""
    *kernel, i, o = m.weight.shape
    layer = torch.nn.Conv2d(i * m.groups, o, kernel, m.stride, m.padding, groups=m.groups, bias=False)
    return _filled(layer.to(memory_format=torch.channels_last), weight=m.weight.data.transpose(3, 2, 0, 1))


def conv3d(kernel, stride=(1, 1, 1)):
    """Of clips (B, C, T, H, W), without bias, from ``kernel`` (kt, kh, kw, in, out)."""
    *sizes, i, o = kernel.shape
    layer = torch.nn.Conv3d(i, o, sizes, stride, [n // 2 for n in sizes], bias=False)
    return _filled(layer, weight=kernel.transpose(4, 3, 0, 1, 2))


def batch_norm(m, gelu=None):
    """Of clips (B, C, T, H, W)."""
    return _filled(torch.nn.BatchNorm3d(m.weight.size, m.eps), weight=m.weight.data, bias=m.bias.data)


def _filled(layer, **arrays):
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(layer, name).copy_(torch.tensor(array))
    return layer


class MLP(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.fc1, self.gelu, self.fc2 = linear(m.fc1), torch.nn.GELU(approximate=gelu), linear(m.fc2)

    def forward(self, x):
        return self.fc2(self.gelu(self.fc1(x)))


class Attention(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.qkv, self.proj, self.heads = linear(m.qkv), linear(m.proj), m.num_heads

    def forward(self, x):
        return self.proj(attention(self.qkv(x), self.heads))


def attention(qkv, num_heads):
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class EncoderBlock(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.norm1, self.attn = layer_norm(m.norm1), Attention(m.attn, gelu)
        self.norm2, self.mlp = layer_norm(m.norm2), MLP(m.mlp, gelu)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenLearner(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.norm = torch.nn.Identity() if m.norm is None else layer_norm(m.norm)
        self.sigmoid, self.mean = m.version == "1.0", m.version == "1.0" and m.pool == "mean"
        if m.version == "1.0":
            self.convs, self.gelu = torch.nn.ModuleList(map(conv, m.convs)), torch.nn.GELU(approximate=gelu)
        else:
            self.mlp = MLP(m.mlp, gelu)

    def forward(self, x):
        y = self.norm(x)
        if self.sigmoid:  # (B, C, H, W) in the memory format channels_last, without a copy
            y = self.convs[0](y.permute(0, 3, 1, 2))
            for layer in self.convs[1:]:
                y = layer(self.gelu(y))
            A = torch.sigmoid(y).flatten(2)
        else:
            A = torch.softmax(self.mlp(y).flatten(1, 2), 1).mT
        return token_pool(A, x.flatten(1, 2), self.mean)


def token_pool(A, x, mean=False):
    return A @ x / (x.shape[1] if mean else 1)


class GridPool(torch.nn.AvgPool2d):
    def __init__(self, m, gelu):
        super().__init__(m.window)

    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2)).flatten(2).mT


class ConvStem(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.convs = torch.nn.ModuleList(map(conv, m.convs))

    def forward(self, x):  # (B, H, W, C)
        x = x.permute(0, 3, 1, 2)
        for layer in self.convs:
            x = F.relu(F.max_pool2d(layer(x), 3, 2, 1))
        return x.permute(0, 2, 3, 1)


class ViT(torch.nn.Module):
    """The names of its parameters are those of minitl's, which ``minitl.interop.to_torch`` gives."""

    def __init__(self, m, gelu):
        super().__init__()
        self.config, self.spec, self.grid = m.config, m.spec, m.grid
        self.patch_embed, self.pos_embed = twin(m.patch_embed), parameter(m.pos_embed)
        self.tokenizer = twin(m.tokenizer, gelu) if m.tokenizer else None
        self.blocks = torch.nn.ModuleList(EncoderBlock(block, gelu) for block in m.blocks)
        self.norm, self.head = layer_norm(m.norm), linear(m.head)
        self.head_weights = linear(m.head_weights) if m.config.head_pool == "sequence" else None

    def forward(self, images):
        if self.config.stem == "conv":
            x = self.patch_embed(images.flatten(0, -4)).reshape(len(images), *self.pos_embed.shape[1:])
        else:
            x = self.patch_embed(self.patches(images))
        x = x + self.pos_embed
        for i, block in enumerate(self.blocks):
            if self.tokenizer and i == self.config.loc:
                grids = x.reshape(-1, *self.grid[1:], self.config.dim)
                x = self.tokenizer(grids).reshape(len(x), -1, self.config.dim)
            x = block(x)
        x = self.norm(x)
        if self.head_weights is None:
            return self.head(x.mean(1))
        return self.head((torch.softmax(self.head_weights(x), 1) * x).sum(1))

    def patches(self, images):
        c, (T, rows, columns) = self.config, self.grid
        x = images.reshape(-1, T, c.tubelet, rows, c.patch_size, columns, c.patch_size, self.spec.channels)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(x), T * rows * columns, -1)


class TokenFuser(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        self.mix_norm1, self.mix, self.mix_norm2 = layer_norm(m.mix_norm1), linear(m.mix), layer_norm(m.mix_norm2)
        self.norm, self.beta = layer_norm(m.norm), linear(m.beta)

    def forward(self, tokens, grid):  # (B, T·S, C), (B, T, H, W, C)
        y = self.mix_norm2(self.mix(self.mix_norm1(tokens).mT).mT)
        weights = torch.sigmoid(self.beta(self.norm(grid)))  # (B, T, H, W, S)
        mixed = weights.flatten(2, 3) @ y.unflatten(1, (grid.shape[1], -1))  # (B, T, H·W, C)
        return grid + mixed.reshape(grid.shape)


class Mixer(torch.nn.Module):
    """minitl's TokenMixer, with clips as (B, C, T, H, W)."""

    def __init__(self, m, gelu):
        super().__init__()
        self.learner, self.fuser = TokenLearner(m.learner, gelu), TokenFuser(m.fuser, gelu)
        self.q, self.k, self.v = linear(m.attention.q), linear(m.attention.k), linear(m.attention.v)

    def forward(self, x):
        grid = x.movedim(1, 4)
        tokens = self.learner(grid.flatten(0, 1)).reshape(len(x), -1, x.shape[1])  # (B, T·S, C)
        q, k, v = (layer(tokens).mT.unsqueeze(3) for layer in (self.q, self.k, self.v))  # one head for each channel
        tokens = F.scaled_dot_product_attention(q, k, v).squeeze(3).mT
        return self.fuser(tokens, grid).movedim(4, 1)


class Bottleneck(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        pointwise = [conv3d(layer.weight.data[None, None, None]) for layer in (m.expand, m.reduce)]
        layers = [pointwise[0], *(twin(layer, gelu) for layer in m.layers), pointwise[1]]
        norms = [batch_norm(norm) for norm in (m.norm1, *m.norms, m.norm2)]
        self.inside = torch.nn.Sequential(*_with_relu(layers, norms)[:-1])

    def forward(self, x):
        return F.relu(x + self.inside(x))


class X21D(torch.nn.Module):
    def __init__(self, m, gelu):
        super().__init__()
        stages = [
            torch.nn.Sequential(*_with_relu([twin(down)], [batch_norm(norm)]), Bottleneck(block, gelu))
            for down, norm, block in zip(m.downs, m.norms, m.blocks, strict=True)
        ]
        self.body, self.head = torch.nn.Sequential(*stages, Bottleneck(m.last, gelu)), linear(m.head)

    def forward(self, clips):
        return self.head(self.body(clips).mean((2, 3, 4)))


def _with_relu(layers, norms):
    """Each layer, then its norm, then a ReLU."""
    return [part for pair in zip(layers, norms, strict=True) for part in (*pair, torch.nn.ReLU())]


TWINS = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.TokenLearner: TokenLearner,
    nn.GridPool: GridPool,
    vit.ConvStem: ConvStem,
    nn.ViT: ViT,
    nn.X21D: X21D,
    SpaceConv: lambda m, gelu: conv3d(m.conv.weight.data[None], (1, *m.conv.stride)),
    TimeConv: lambda m, gelu: conv3d(m.conv.weight.data[:, None]),
    TokenMixer: Mixer,
}
