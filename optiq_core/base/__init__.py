"""Bases: where a model comes from, how it is loaded, and what the device computes with.

``resolve_base`` finds or imports a model, ``load_base`` loads it for the device. Call ``setup_device`` before
anything imports MLX.
"""

from .device import DeviceProfile, setup_device
from .load_in import LOAD_IN, LoadIn
from .loader import EMBEDDED, EMBEDDED_MIXED, LoadedBase, load_base, resolve_base
from .metadata import BaseMetadata, ModuleBits, read_metadata

__all__ = [
    "EMBEDDED",
    "EMBEDDED_MIXED",
    "LOAD_IN",
    "BaseMetadata",
    "DeviceProfile",
    "LoadIn",
    "LoadedBase",
    "ModuleBits",
    "load_base",
    "read_metadata",
    "resolve_base",
    "setup_device",
]
