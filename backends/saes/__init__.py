"""Sparse autoencoders in the sae-lens on-disk format, as the backends use them."""

from .files import SaeSource, read_folder, source_of_files
from .latent_maths import DeviceSae, LatentMaths
from .sae import Sae
from .shelf import EMPTY, Shelf

__all__ = ["EMPTY", "DeviceSae", "LatentMaths", "Sae", "SaeSource", "Shelf", "read_folder", "source_of_files"]
