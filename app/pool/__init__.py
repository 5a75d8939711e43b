"""Who runs what, and when: the supervisor's side and the frontends' side of the worker processes."""
