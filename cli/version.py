"""Which probewire this is."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]


def _version() -> str:
    try:
        return version("probewire")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+source"


VERSION = _version()
