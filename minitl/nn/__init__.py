"""Modules: layers with weights, and the models made of them."""

from .layers import BatchNorm2d, Conv2d, Dropout, DropPath, LayerNorm, Linear
from .module import Module, Parameter
from .tokenizers import GridPool, StaticPool
from .tokenlearner import TokenLearner
from .transformer import MLP, Attention, EncoderBlock
from .vit import ViT, ViTConfig
