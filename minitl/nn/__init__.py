"""Modules: layers with weights, and models built from them."""

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
from .spec import DataSpec
from .tokenlearner import TokenFuser, TokenLearner
from .transformer import MLP, Attention, EncoderBlock
from .vit import ViT, ViTConfig, inflate
