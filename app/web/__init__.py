"""Speaks HTTP: requests in, answers out. No torch."""
