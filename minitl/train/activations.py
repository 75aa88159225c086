"""Activation maps: how strongly each stage of a model responds at each place."""

from ..autograd import no_grad
from ..backend import to_numpy
from ..nn import X21D


def activation_maps(model, images):
    """Return the mean over the channels of the squared activations of each stage of a ViT or X21D at each place.

    Maps normalized images (B, H, W, C) or clips to {stage: maps (B, h, w)}, or (B, T', h, w) for clips. A stage is a
    part of the model whose output has channels for each place: the patches and the blocks before the tokenizer, and the
    ways back after it (Zagoruyko and Komodakis, 2017, section 3.1).
    """
    if isinstance(model, X21D):
        stages = {f"stage {i + 1}": block for i, block in enumerate(model.blocks)} | {"last block": model.last}
    else:
        first = model.config.loc if model.tokenizer else len(model.blocks)
        stages = {"patches": model.drop} | {f"block {i}": model.blocks[i] for i in range(first)}
        stages |= {f"block {first + i}": back for i, back in enumerate(model.backs)}
    outputs = {}

    def recording(name, forward):
        def record(*args):
            outputs[name] = forward(*args)
            return outputs[name]

        return record

    for name, module in stages.items():
        module.forward = recording(name, module.forward)
    try:
        with no_grad():
            model(images)
    finally:
        for module in stages.values():
            del module.forward
    maps = {name: (to_numpy(y) ** 2).mean(-1) for name, y in outputs.items()}
    if isinstance(model, X21D):
        return maps
    shape = model.grid[images.ndim == 4 :]
    return {name: y.reshape(len(images), *shape) for name, y in maps.items()}
