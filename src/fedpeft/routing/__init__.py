"""Which tensors each client receives, trains and keeps."""
