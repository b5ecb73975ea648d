"""What a fault in one request's hook is called, as its caller is told."""

from __future__ import annotations

from ...protos.errors import Internal, InvalidArgument, ProbewireError
from ...protos.sites import Site

__all__ = ["as_error"]


def as_error(error: Exception, site: Site) -> ProbewireError:
    """What a hook at a site raised, as its caller is told."""
    if isinstance(error, ProbewireError):
        return error
    # torch says RuntimeError of tensors that do not go together, as of much else.
    misfit = isinstance(error, RuntimeError) and any(word in str(error) for word in ("size", "shape"))
    if misfit or isinstance(error, (ValueError, IndexError)):
        return InvalidArgument(f"a hook at {site} failed: {error}")
    return Internal(f"a hook at {site} failed: {type(error).__name__}: {error}")
