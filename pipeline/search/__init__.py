"""Searching stores: which seconds of which videos show something."""
