"""Who holds which PUs and how much memory, on the whole node; nothing runs without a lease."""

from .book import LeaseBook
from .lease import Lease
from .node import has_outer_lease, lease, lease_async, node_book, node_ledger, process_book

__all__ = ["Lease", "LeaseBook", "has_outer_lease", "lease", "lease_async", "node_book", "node_ledger", "process_book"]
