"""Memory that the graph of a loss keeps for its backward pass, by op."""

from minitl import Tensor
from minitl.backend import is_array


def saved_bytes(loss):
    """Return the memory that the graph of the Tensor ``loss`` keeps for backward: ``{op name: bytes}``, largest first.

    An array is counted once, at the newest op that holds it, and a view as the whole array behind it. Parameters and
    other leaves exist anyway and are left out.
    """
    waiting, nodes, leaves = [loss.node], set(), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            leaves.add(id(_owner(node.data)))
        elif node is not None and node not in nodes:
            nodes.add(node)
            waiting.extend(node.parents)
    seen, sizes = set(leaves), {}
    for node in sorted(nodes, key=lambda node: -node.order):
        held = {id(array): array for array in map(_owner, _held(node.pullback))}
        new = [array.nbytes for key, array in held.items() if key not in seen]
        seen |= held.keys()
        sizes[node.name] = sizes.get(node.name, 0) + sum(new)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _held(kept):
    """The arrays that a pullback names, directly, in a list, or by a function that it names."""
    if is_array(kept):
        yield kept
    elif isinstance(kept, tuple | list):
        for item in kept:
            yield from _held(item)
    else:
        for cell in getattr(kept, "__closure__", None) or ():
            yield from _held(cell.cell_contents)


def _owner(array):
    owner = array
    while (owner := getattr(owner, "base", None)) is not None:  # a strided view has a wrapper between it and its owner
        array = owner if is_array(owner) else array
    return array
