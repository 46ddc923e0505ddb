"""The stages on Ray: the only part of this folder that knows it."""
