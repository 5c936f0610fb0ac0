"""Bytes of tensors in files from strangers: read, checked, hashed and written, without PyTorch where possible."""
