"""What the pyramid must know of each diffusers family: one file a family."""

from tpdiff.families.base import Family, families, find_family, register_family

__all__ = ["Family", "families", "find_family", "register_family"]
