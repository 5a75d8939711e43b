"""What lives in a worker: torch, no HTTP."""
