"""XenStore for blocking programs: a thread-safe client over the daemon's Unix socket."""

from .client import Client

__all__ = ["Client"]
