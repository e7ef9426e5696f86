"""Changes of weights that leave a model's float outputs as they are, and make it round better, by name."""

from .awq import AWQ
from .smoothquant import SMOOTHQUANT
from .teq import TEQ
from .transform import Group, Transform

__all__ = ["TRANSFORMS", "Group", "Transform"]

TRANSFORMS = {transform.name: transform for transform in (AWQ, SMOOTHQUANT, TEQ)}
