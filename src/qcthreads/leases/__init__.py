"""Who holds which PUs and how much memory; nothing runs without a lease."""

from .book import Lease, LeaseBook, lease, process_book

__all__ = ["Lease", "LeaseBook", "lease", "process_book"]
