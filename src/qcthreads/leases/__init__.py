"""Who holds which PUs and how much memory; nothing runs without a lease."""

from .book import Lease, LeaseBook, lease

__all__ = ["Lease", "LeaseBook", "lease"]
