"""How strongly each stage of a model acts, and where."""

from ..autograd import no_grad
from ..backend import to_numpy
from ..nn import X21D


def activation_maps(model, images):
    """How strongly a ViT or X21D acts at each place: the mean over the channels of its squared activations.

    For normalised images (B, H, W, C) or clips, a dict from the name of each stage to maps (B, h, w), for clips
    (B, T', h, w). A stage is a part of the model behind which every place has channels of its own: the patches and the
    blocks before the tokenizer; behind it only a way back makes more. (Zagoruyko and Komodakis, 2017, show their
    attention so.)
    """
    if isinstance(model, X21D):
        stages = {f"stage {i + 1}": block for i, block in enumerate(model.blocks)} | {"last block": model.last}
    else:
        first = model.config.loc if model.tokenizer else len(model.blocks)
        stages = {"patches": model.drop} | {f"block {i}": model.blocks[i] for i in range(first)}
        stages |= {f"block {first + i}": back for i, back in enumerate(model.backs)}
    found = {}

    def recording(name, forward):
        def record(*args):
            found[name] = forward(*args)
            return found[name]

        return record

    for name, module in stages.items():
        module.forward = recording(name, module.forward)
    try:
        with no_grad():
            model(images)
    finally:
        for module in stages.values():
            del module.forward
    maps = {name: (to_numpy(y) ** 2).mean(-1) for name, y in found.items()}
    if isinstance(model, X21D):
        return maps
    shape = (model.config.time_steps, *model.config.grid)[images.ndim == 4 :]
    return {name: y.reshape(len(images), *shape) for name, y in maps.items()}
