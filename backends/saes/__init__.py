"""Sparse autoencoders in the sae-lens on-disk format, as the backends use them."""

from .files import SaeSource, read_folder, source_of_files
from .latent_maths import DeviceSae, LatentMaths
from .sae import Sae
from .user_assets import EMPTY, UserAssets

__all__ = ["EMPTY", "DeviceSae", "LatentMaths", "Sae", "SaeSource", "UserAssets", "read_folder", "source_of_files"]
