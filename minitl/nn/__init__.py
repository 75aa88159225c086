"""Modules: layers with weights, and the models made of them."""

from .baselines import (
    CrossAttention,
    DenseTokenizer,
    GateTokenizer,
    GridPool,
    QueryTokenizer,
    Reproject,
    SpatialGate,
    StaticPool,
    Unpool,
    make_back,
    make_tokenizer,
)
from .bottleneck import X21D, Bottleneck, VectorAttention, X21DConfig
from .layers import BatchNorm2d, Conv2d, Dropout, DropPath, LayerNorm, Linear
from .module import Module, Parameter
from .tokenlearner import TokenFuser, TokenLearner
from .transformer import MLP, Attention, EncoderBlock
from .vit import ViT, ViTConfig, inflate
