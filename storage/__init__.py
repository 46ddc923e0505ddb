"""The cache store: Zarr format version 1, writer, checked reader, maintenance."""
