"""From leases to worker processes to results to the store; knows nothing of fragments or many-body expansions."""
