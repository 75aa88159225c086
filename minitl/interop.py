"""Weights from and to other programs: PyTorch, and the authors' own code (Scenic's ``projects/token_learner``).

For PyTorch only the order of the axes differs; the names are ours. Scenic, in JAX and Flax, holds the same numbers
under other names, and each of its arrays is a view of one of ours. So a single table, ``_parts``, names the parts of
every module and their views: reading writes through a view, writing copies one.
"""

import json
import operator
import statistics
from dataclasses import asdict

import numpy as np

from . import nn
from .backend import FLOATS, describe, is_array, to_numpy
from .errors import InputError

SUPPORTED = (
    "TokenLearner (version 1.0 or 1.1), TokenFuser with beta='mlp', EncoderBlock, ViT and VideoViT with stem='patch' "
    "and head_pool='mean'"
)


def to_torch(module):
    """Name -> NumPy array, a copy, of all weights and buffers of ``module`` as PyTorch has them.

    The weight of a Linear is (out, in), that of a Conv2d (out, in, kh, kw); all else is as in ``module.state_dict()``,
    and so are the names: a module of PyTorch's own layers with attributes of these names can load it.
    """
    axes = _torch_axes(module)
    state = {name: to_numpy(array) for name, array in module.state_dict().items()}
    return {name: np.array(x.transpose(axes[name]) if name in axes else x, order="C") for name, x in state.items()}


def from_torch(module, arrays):
    """Copy ``arrays`` (name -> array, as ``to_torch`` gives them) into ``module``.

    Raises InputError with a list of every name that is missing, unknown, of another shape (shapes being those that
    minitl has, (..., in, out)) or not of real numbers; then nothing changes.
    """
    arrays = {name: to_numpy(array) for name, array in arrays.items()}
    for name, axes in _torch_axes(module).items():
        if name in arrays and arrays[name].ndim == len(axes):
            arrays[name] = arrays[name].transpose(np.argsort(axes))
    module.load_state_dict(arrays)


def _torch_axes(module):
    """Name of a weight -> where its axes in PyTorch are found here."""
    kinds = {nn.Linear: (1, 0), nn.Conv2d: (3, 2, 0, 1)}
    weights = [(path, type(owner)) for path, _, owner in module._members() if path.rpartition(".")[2] == "weight"]
    return {path: kinds[kind] for path, kind in weights if kind in kinds}


def torch_file(model, about):
    """The bytes of a plain safetensors file with ``to_torch(model)``, of a ViT or X21D.

    Its metadata says of what configuration the model is, and ``about``: strings by name.
    """
    from safetensors.numpy import save

    header = {"format": "pt", type(model).__name__: json.dumps(asdict(model.config))}
    return save(to_torch(model), header | about)


def load_torch(path):
    """``(model, about)`` of a file that ``torch_file`` made, or that has such weights and metadata.

    Raises InputError for a file that is missing or damaged, or whose metadata or weights are of no such model.
    """
    from safetensors import SafetensorError, safe_open

    kinds = {"ViT": (nn.ViT, nn.ViTConfig), "X21D": (nn.X21D, nn.X21DConfig)}
    try:
        with safe_open(path, framework="numpy") as file:
            arrays, about = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        kind = next(kind for kind in kinds if kind in about)
        model, config = kinds[kind]
        sizes = {name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(about.pop(kind)).items()}
        model = model(config(**sizes), rng=np.random.default_rng(0))
        from_torch(model, arrays)
    except StopIteration:
        raise InputError(f"{path} has weights, but no metadata on the model; build it and use from_torch") from None
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no model that minitl exported ({error})") from error
    return model, about


def from_scenic(meta, params):
    """Build the module that ``meta`` describes with the weights ``params``, in their dtype, on the CPU.

    ``meta`` is a dict or its JSON text: ``module``, ``version``, sizes and options. ``params`` maps Flax paths, with
    or without ``param/`` in front, to float32 or float64 arrays. A TokenFuser here adds its residual, which Scenic
    leaves to the encoder. Raises InputError for a module that is not supported, a ``meta`` that does not describe one,
    and, in one list, all parameters that are missing, unknown or of another shape.
    """
    try:
        meta = meta if isinstance(meta, dict) else json.loads(str(meta))
    except json.JSONDecodeError as error:
        raise InputError(f"meta is a dict or its JSON text, and this text is no JSON: {error}") from error
    if not isinstance(meta, dict) or "module" not in meta:
        raise InputError(f"meta is a dict with the 'module' and its sizes, or its JSON text; got {meta!r}")
    params = {path.removeprefix("param/"): to_numpy(array) for path, array in params.items()}
    module = _build(meta, params)
    table = _table(module)
    shapes = {path: view(parameter.data).shape for path, (parameter, view) in table.items()}
    wrong = [f"missing: {path} {list(shapes[path])}" for path in shapes if path not in params]
    wrong += [f"unknown: {path} {describe(params[path])}" for path in params if path not in shapes]
    both = [path for path in shapes if path in params and params[path].shape != shapes[path]]
    wrong += [f"shape: {path} is {describe(params[path])}, not {list(shapes[path])}" for path in both]
    if wrong:
        raise InputError(f"these parameters do not fit the {meta['module']} of meta\n  " + "\n  ".join(wrong))
    dtypes = {array.dtype for array in params.values()}
    if len(dtypes) > 1 or not dtypes <= set(FLOATS):
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"the parameters are {found}; convert all of them to float32 or all to float64")
    module.to(dtype=dtypes.pop())
    for path, (parameter, view) in table.items():
        view(parameter.data)[...] = params[path]
    return module


def to_scenic(module, leaf=lambda parameter: parameter.data):
    """Flax path -> NumPy array in Scenic's shape, a copy, of what ``leaf`` picks from each Parameter of ``module``.

    ``leaf`` maps a Parameter to an array of its shape: the weight by default, ``lambda p: p.grad`` for the gradient.
    Raises InputError for a module that Scenic does not have, and ValueError when ``leaf`` gives anything else.
    """
    arrays = {}
    for path, (parameter, view) in _table(module).items():
        array = leaf(parameter)
        if not is_array(array) or array.shape != parameter.shape:
            raise ValueError(f"{path}: leaf must give an array of the shape {parameter.shape}, got {describe(array)}")
        arrays[path] = np.array(to_numpy(view(array)))
    return arrays


def _table(module):
    """Flax path -> (Parameter, view), where ``view`` shows an array of the Parameter's shape in Scenic's shape."""
    table = {}
    for name, part in _parts(module).items():
        if isinstance(part, nn.Module):
            table |= {f"{name}/{path}": row for path, row in _table(part).items()}
        elif part is not None:
            table[name] = part if isinstance(part, tuple) else (part, lambda array: array)
    return table


def _parts(module):
    """Scenic's name -> Module, Parameter, (Parameter, view) where the shapes differ, or None for what is left out."""
    match module:
        case nn.LayerNorm():
            return {"scale": module.weight, "bias": module.bias}
        case nn.Linear() | nn.Conv2d():
            return {"kernel": module.weight, "bias": module.bias}
        case nn.MLP():
            return {"Dense_0": module.fc1, "Dense_1": module.fc2}
        case nn.Attention(qkv=qkv, proj=proj, num_heads=heads):
            parts = {"out/kernel": (proj.weight, lambda W: W.reshape(heads, -1, W.shape[1])), "out/bias": proj.bias}
            for i, name in enumerate(("query", "key", "value")):
                third = _third(i, heads)
                parts |= {f"{name}/kernel": (qkv.weight, third), f"{name}/bias": (qkv.bias, third)}
            return parts
        case nn.EncoderBlock():
            attention = {"LayerNorm_0": module.norm1, "MultiHeadDotProductAttention_0": module.attn}
            return attention | {"LayerNorm_1": module.norm2, "MlpBlock_0": module.mlp}
        case nn.TokenLearner(version="1.0"):
            return {"LayerNorm_0": module.norm} | {f"Conv_{i}": conv for i, conv in enumerate(module.convs)}
        case nn.TokenLearner(version="1.1"):
            return {"LayerNorm_0": module.norm, "token_masking": module.mlp}
        case nn.TokenFuser(beta=nn.MLP()):
            mix = {"fuser_mix_norm1": module.mix_norm1, "Dense_0": module.mix, "fuser_mix_norm2": module.mix_norm2}
            return mix | {"LayerNorm_0": module.norm, "token_masking": module.beta}
        case nn.ViT(config=nn.ViTConfig(stem="patch", head_pool="mean") as config, patch_embed=embed):
            patch = (config.patch_size, config.patch_size, config.channels, config.dim)
            patch = patch if config.frames == 1 else (config.tubelet, *patch)
            learner = {"1.0": "TokenLearnerModule", "1.1": "TokenLearnerModuleV11"}[config.version]
            tokenizers = [module.tokenizer, *module.later_tokenizers]
            return {
                "embedding/kernel": (embed.weight, lambda W: W.reshape(patch)),
                "embedding/bias": embed.bias,
                "Transformer/posembed_input/pos_embedding": module.pos_embed,
                **{f"Transformer/encoderblock_{i}": block for i, block in enumerate(module.blocks)},
                **{f"Transformer/{learner}_{i}": tokenizer for i, tokenizer in enumerate(tokenizers)},
                **{f"Transformer/TokenFuser_{i}": back for i, back in enumerate(module.backs)},
                "Transformer/encoder_norm": module.norm,
                "output_projection": module.head,
            }
    raise InputError(f"{type(module).__name__} has no counterpart in Scenic here; supported: {SUPPORTED}")


def _third(i, heads):
    """View of one of packed (..., 3C) = [q | k | v] as (..., heads, C / heads)."""
    return lambda array: array.reshape(*array.shape[:-1], 3, heads, -1)[..., i, :, :]


def _build(meta, params):
    """The module that ``meta`` describes, with weights that are to be overwritten."""
    rng = np.random.default_rng(0)  # its own, so that the package's random numbers go on as if nothing had been drawn
    try:
        match meta["module"]:
            case "TokenLearner":
                sizes = _sizes(meta, num_tokens="num_tokens") | _learner(meta)
                return nn.TokenLearner(_width(params), **sizes, rng=rng)
            case "TokenFuser":
                sizes = _sizes(meta, num_tokens="num_tokens", hidden="bottleneck_dim")
                return nn.TokenFuser(_width(params), **sizes, beta="mlp", normalize=bool(meta["normalize"]), rng=rng)
            case "EncoderBlock":
                sizes = _sizes(meta, num_heads="num_heads", mlp_dim="mlp_dim")
                return nn.EncoderBlock(_width(params), **sizes, rng=rng)
            case "ViT" | "VideoViT":
                return nn.ViT(_vit_config(meta, params), rng=rng)
    except KeyError as error:
        raise InputError(f"meta has no {error}, which this {meta['module']} needs") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"meta and params do not describe a {meta['module']}: {error}") from error
    raise InputError(f"cannot build a {meta['module']} from Scenic's weights; supported: {SUPPORTED}")


def _sizes(meta, **names):
    """Our name -> meta's value, given our name -> meta's name; TypeError for what is no integer."""
    return {ours: operator.index(meta[theirs]) for ours, theirs in names.items()}


def _learner(meta):
    """What the two versions of TokenLearner have of their own."""
    own = {"pool": meta["pool"]} if meta["version"] == "1.0" else _sizes(meta, hidden="bottleneck_dim")
    return {"version": meta["version"], **own}


def _vit_config(meta, params):
    names = {"dim": "hidden_size", "layers": "num_layers", "heads": "num_heads"}
    names |= {name: name for name in ("image_size", "num_classes", "patch_size", "mlp_dim")}
    tokenizer = {"tokenizer": "none"}
    if meta["module"] == "VideoViT":
        names |= {"frames": "frames", "tubelet": "tubelet_frames"}
    if meta["version"] is not None:
        tokenizer = _sizes(meta, num_tokens="num_tokens", loc="tokenlearner_loc") | _learner(meta)
    if meta.get("fuser"):
        tokenizer |= {"back": "fuser", "fuser_beta": "mlp", "fuser_mix": meta.get("fuser_mix", "frame")}
        tokenizer |= _sizes(meta, hidden="bottleneck_dim")
    sizes = _sizes(meta, **names)
    sizes["image_size"] = (sizes["image_size"], sizes["image_size"])
    kernel = params.get("embedding/kernel")
    channels = kernel.shape[-2] if kernel is not None and kernel.ndim in (4, 5) else 3  # meta does not say
    return nn.ViTConfig(**sizes, **tokenizer, channels=channels)


def _width(params):
    """The channels, which meta does not give: most of these parameters agree on them, even if one is wrong."""
    axes = {"LayerNorm_0/scale": 0, "LayerNorm_0/bias": 0, "Conv_0/kernel": 2}
    axes |= {"token_masking/Dense_0/kernel": 0, "MlpBlock_0/Dense_0/kernel": 0}
    widths = [params[path].shape[axis] for path, axis in axes.items() if path in params and params[path].ndim > axis]
    if not widths:
        raise InputError(f"the number of channels is read from one of {', '.join(axes)}, and all are missing")
    return statistics.mode(widths)
