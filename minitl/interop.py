"""Weights from and to other programs: PyTorch, and the authors' own code (Scenic's ``projects/token_learner``).

For PyTorch only the order of the axes differs; the names are ours. Scenic, in JAX and Flax, holds the same numbers
under other names, and each of its arrays is a view of one of ours. So a single table, ``_scenic_names``, lists the
children of every module with their views: import writes through a view, export copies it.
"""

import json
import operator
import statistics
from dataclasses import asdict, fields

import numpy as np

from . import nn
from .backend import FLOATS, describe, is_array, to_numpy
from .errors import InputError

SUPPORTED = (
    "TokenLearner (version 1.0 or 1.1), TokenFuser with beta='mlp', EncoderBlock, ViT and VideoViT with stem='patch' "
    "and head_pool='mean'"
)


def to_torch(module):
    """Return copies of all weights and buffers of ``module`` in PyTorch's layout, {name: NumPy array}.

    The weight of a Linear is (out, in), that of a Conv2d (out, in, kh, kw); everything else, including the names, is as
    in ``module.state_dict()``: a module of PyTorch's own layers with attributes of these names can load it.
    """
    axes = _torch_axes(module)
    state = {name: to_numpy(array) for name, array in module.state_dict().items()}
    return {name: np.array(x.transpose(axes[name]) if name in axes else x, order="C") for name, x in state.items()}


def from_torch(module, arrays):
    """Copy ``arrays``, {name: array} as returned by ``to_torch``, into ``module``.

    Raises InputError with a list of all names that are missing, unknown, of another shape (given in minitl's layout,
    (..., in, out)) or not of real numbers; then nothing changes.
    """
    arrays = {name: to_numpy(array) for name, array in arrays.items()}
    for name, axes in _torch_axes(module).items():
        if name in arrays and arrays[name].ndim == len(axes):
            arrays[name] = arrays[name].transpose(np.argsort(axes))
    module.load_state_dict(arrays)


def _torch_axes(module):
    """Return {name of a weight: minitl's axes in PyTorch's order}."""
    kinds = {nn.Linear: (1, 0), nn.Conv2d: (3, 2, 0, 1)}
    weights = [(path, type(owner)) for path, _, owner in module._members() if path.rpartition(".")[2] == "weight"]
    return {path: kinds[kind] for path, kind in weights if kind in kinds}


def torch_file(model, about):
    """Return the bytes of a plain safetensors file with ``to_torch(model)``, for a ViT or X21D.

    Its metadata holds the model's configuration and DataSpec, and ``about``, a dict of strings.
    """
    from safetensors.numpy import save

    header = {"format": "pt", type(model).__name__: json.dumps(asdict(model.config) | asdict(model.spec))}
    return save(to_torch(model), header | about)


def load_torch(path):
    """Return ``(model, about)`` from a file that ``torch_file`` made, or that has such weights and metadata.

    Raises InputError if the file is missing or damaged, or its metadata or weights are not of such a model.
    """
    from safetensors import SafetensorError, safe_open

    kinds = {"ViT": (nn.ViT, nn.ViTConfig), "X21D": (nn.X21D, nn.X21DConfig)}
    try:
        with safe_open(path, framework="numpy") as file:
            arrays, about = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        kind = next(kind for kind in kinds if kind in about)
        model, config = kinds[kind]
        options, spec = split_spec(json.loads(about.pop(kind)))
        model = model(config(**options), spec, rng=np.random.default_rng(0))
        from_torch(model, arrays)
    except StopIteration:
        raise InputError(f"{path} has weights, but no metadata on the model; build it and use from_torch") from None
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a model that minitl exported ({error})") from error
    return model, about


def split_spec(saved):
    """Split a flat dict of options, read from JSON, into those of a model's configuration and a DataSpec."""
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in dict(saved).items()}
    return options, nn.DataSpec(**{f.name: options.pop(f.name) for f in fields(nn.DataSpec) if f.name in options})


def from_scenic(meta, params):
    """Build the module that ``meta`` describes with the weights ``params``, in their dtype, on the CPU.

    ``meta`` is a dict or its JSON text: ``module``, ``version``, sizes and options. ``params`` maps Flax paths, with
    or without the prefix ``param/``, to float32 or float64 arrays. A TokenFuser here adds its residual, which Scenic
    leaves to the encoder. Raises InputError for an unsupported module, for a ``meta`` that does not describe one, and,
    in one list, for all parameters that are missing, unknown or of another shape.
    """
    try:
        meta = meta if isinstance(meta, dict) else json.loads(str(meta))
    except json.JSONDecodeError as error:
        raise InputError(f"meta is neither a dict nor JSON text: {error}") from error
    if not isinstance(meta, dict) or "module" not in meta:
        raise InputError(f"meta must be a dict with the 'module' and its sizes, or its JSON text; got {meta!r}")
    params = {path.removeprefix("param/"): to_numpy(array) for path, array in params.items()}
    module = _build(meta, params)
    table = _views(module)
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
    """Return copies of the arrays of ``module`` in Scenic's shapes, {Flax path: NumPy array}.

    ``leaf`` maps a Parameter to an array of its shape: the weight by default, or ``lambda p: p.grad`` for the gradient.
    Raises InputError for a module that Scenic does not have, and ValueError if ``leaf`` returns anything else.
    """
    arrays = {}
    for path, (parameter, view) in _views(module).items():
        array = leaf(parameter)
        if not is_array(array) or array.shape != parameter.shape:
            raise ValueError(f"{path}: leaf must return an array of the shape {parameter.shape}, got {describe(array)}")
        arrays[path] = np.array(to_numpy(view(array)))
    return arrays


def _views(module):
    """Return {Flax path: (Parameter, view)}; ``view`` maps an array of the Parameter's shape to Scenic's shape."""
    table = {}
    for name, child in _scenic_names(module).items():
        if isinstance(child, nn.Module):
            table |= {f"{name}/{path}": row for path, row in _views(child).items()}
        elif child is not None:
            table[name] = child if isinstance(child, tuple) else (child, lambda array: array)
    return table


def _scenic_names(module):
    """Return {Scenic's name: Module, Parameter, (Parameter, view) if shapes differ, or None if left out}."""
    match module:
        case nn.LayerNorm():
            return {"scale": module.weight, "bias": module.bias}
        case nn.Linear() | nn.Conv2d():
            return {"kernel": module.weight, "bias": module.bias}
        case nn.MLP():
            return {"Dense_0": module.fc1, "Dense_1": module.fc2}
        case nn.Attention(qkv=qkv, proj=proj, num_heads=heads):
            names = {"out/kernel": (proj.weight, lambda W: W.reshape(heads, -1, W.shape[1])), "out/bias": proj.bias}
            for i, name in enumerate(("query", "key", "value")):
                third = _third(i, heads)
                names |= {f"{name}/kernel": (qkv.weight, third), f"{name}/bias": (qkv.bias, third)}
            return names
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
        case nn.ViT(config=nn.ViTConfig(stem="patch", head_pool="mean") as config, spec=spec, patch_embed=embed):
            patch = (config.patch_size, config.patch_size, spec.channels, config.dim)
            patch = patch if spec.frames == 1 else (config.tubelet, *patch)
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
    """Return a view of q, k or v in packed (..., 3C) = [q | k | v] as (..., heads, C / heads)."""
    return lambda array: array.reshape(*array.shape[:-1], 3, heads, -1)[..., i, :, :]


def _build(meta, params):
    """Build the module that ``meta`` describes, with weights to be overwritten."""
    rng = np.random.default_rng(0)  # its own, to leave the package's generator as it is
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
                return nn.ViT(*_vit_config(meta, params), rng=rng)
    except KeyError as error:
        raise InputError(f"meta has no {error}, which this {meta['module']} needs") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"meta and params do not describe a {meta['module']}: {error}") from error
    raise InputError(f"cannot build a {meta['module']} from Scenic's weights; supported: {SUPPORTED}")


def _sizes(meta, **names):
    """Return {our name: meta's value}, given our names and meta's; raises TypeError for a value that is not integer."""
    return {ours: operator.index(meta[theirs]) for ours, theirs in names.items()}


def _learner(meta):
    """Return the options that only one version of TokenLearner has."""
    own = {"pool": meta["pool"]} if meta["version"] == "1.0" else _sizes(meta, hidden="bottleneck_dim")
    return {"version": meta["version"], **own}


def _vit_config(meta, params):
    """Return the ViTConfig and the DataSpec that ``meta`` describes."""
    names = {"dim": "hidden_size", "layers": "num_layers", "heads": "num_heads"}
    names |= {name: name for name in ("patch_size", "mlp_dim")}
    tokenizer, data = {"tokenizer": "none"}, {"side": "image_size", "num_classes": "num_classes"}
    if meta["module"] == "VideoViT":
        names, data = names | {"tubelet": "tubelet_frames"}, data | {"frames": "frames"}
    if meta["version"] is not None:
        tokenizer = _sizes(meta, num_tokens="num_tokens", loc="tokenlearner_loc") | _learner(meta)
    if meta.get("fuser"):
        tokenizer |= {"back": "fuser", "fuser_beta": "mlp", "fuser_mix": meta.get("fuser_mix", "frame")}
        tokenizer |= _sizes(meta, hidden="bottleneck_dim")
    data = _sizes(meta, **data)
    side = data.pop("side")
    kernel = params.get("embedding/kernel")
    channels = kernel.shape[-2] if kernel is not None and kernel.ndim in (4, 5) else 3  # meta does not give them
    return nn.ViTConfig(**_sizes(meta, **names), **tokenizer), nn.DataSpec((side, side), channels, **data)


def _width(params):
    """Return the channels, which meta does not give: most of these parameters agree on them, even if one is wrong."""
    axes = {"LayerNorm_0/scale": 0, "LayerNorm_0/bias": 0, "Conv_0/kernel": 2}
    axes |= {"token_masking/Dense_0/kernel": 0, "MlpBlock_0/Dense_0/kernel": 0}
    widths = [params[path].shape[axis] for path, axis in axes.items() if path in params and params[path].ndim > axis]
    if not widths:
        raise InputError(f"the number of channels is read from one of {', '.join(axes)}, but all are missing")
    return statistics.mode(widths)
