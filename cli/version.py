"""Which probewire this is."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]

try:
    VERSION = version("probewire")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0+source"
