"""Pictures and recordings are read by native code, in processes of its own, so that a file that ends its reader costs its sender
alone.
"""
