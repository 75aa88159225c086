"""DataSpec: the sizes of a model that the data set determines."""

from dataclasses import dataclass, fields

from ..errors import InputError, check_types


@dataclass(frozen=True)
class DataSpec:
    """Sizes of the images or clips that a model takes, and the number of their classes.

    Raises InputError if one of them is not a positive integer.
    """

    image_size: tuple[int, int] = (32, 32)
    """height and width of images or frames in pixels"""
    channels: int = 3
    """color channels"""
    num_classes: int = 10
    """number of classes"""
    frames: int = 1
    """frames of a clip; 1 for images"""

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "image_size", tuple(self.image_size))  # a list, if read from JSON
        for field in fields(self):
            value = getattr(self, field.name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise InputError(f"{field.name} must be at least 1, got {value}")
