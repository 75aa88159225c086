"""Layers: thin shells that hold the weights of an op. Weights are ``(..., in, out)``, images channels last."""

import numpy as np

from .. import ops
from ..backend import default_rng
from ..ops.conv import pair
from ..ops.noise import probability
from .module import Module, constant, lecun_normal, xavier_uniform


class Linear(Module):
    """(..., in_features) -> (..., out_features): y = x W + b.

    The output consists of ``parts`` equal parts, each initialized as if it were a separate layer.
    """

    def __init__(self, in_features, out_features, bias=True, parts=1, rng=None):
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features={in_features} and out_features={out_features} must be at least 1")
        self.weight = xavier_uniform(default_rng(rng), (in_features, out_features), parts)
        self.bias = constant(0, out_features) if bias else None

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """(B, H, W, in_channels) -> (B, Ho, Wo, out_channels). Sizes are integers or pairs (height, width)."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, bias=True, rng=None):
        kernel = pair(kernel_size, "kernel_size", 1)
        if in_channels < 1 or out_channels < 1 or groups < 1:
            raise ValueError(
                f"in_channels={in_channels}, out_channels={out_channels} and groups={groups} must be at least 1"
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide both {in_channels} and {out_channels} channels")
        self.weight = lecun_normal(default_rng(rng), (*kernel, in_channels // groups, out_channels))
        self.bias = constant(0, out_channels) if bias else None
        self.stride, self.padding, self.groups = pair(stride, "stride", 1), pair(padding, "padding", 0), groups

    def forward(self, x):
        return ops.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding, groups=self.groups)


class LayerNorm(Module):
    """(..., dim) -> (..., dim): mean 0 and variance 1 over the last axis, then scale and shift."""

    def __init__(self, dim, eps=1e-6):
        self.weight, self.bias, self.eps = constant(1, dim), constant(0, dim), eps

    def forward(self, x):
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class BatchNorm2d(Module):
    """(B, H, W, channels) -> (B, H, W, channels): mean 0 and variance 1 for each channel, then scale and shift."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        self.weight, self.bias, self.eps, self.momentum = constant(1, channels), constant(0, channels), eps, momentum
        self.running_mean, self.running_var = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x):
        running = {"running_mean": self.running_mean, "running_var": self.running_var}
        options = {"training": self.training, "momentum": self.momentum, "eps": self.eps}
        return ops.batch_norm(x, self.weight, self.bias, **running, **options)


class Dropout(Module):
    """Set entries to zero with probability p in training and divide the rest by 1 - p; do nothing in evaluation."""

    def __init__(self, p, rng=None):
        self.p, self.rng = probability(p), rng

    def forward(self, x):
        return ops.dropout(x, p=self.p, rng=self.rng) if self.training and self.p else x


class DropPath(Module):
    """Set whole samples to zero in the same way (stochastic depth)."""

    def __init__(self, p, rng=None):
        self.p, self.rng = probability(p), rng

    def forward(self, x):
        return ops.drop_path(x, p=self.p, rng=self.rng) if self.training and self.p else x
