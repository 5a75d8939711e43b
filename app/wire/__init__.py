"""What crosses between processes: the messages, their bytes, and the sockets that carry them. No pickle."""
