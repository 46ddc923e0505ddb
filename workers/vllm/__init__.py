"""VoCo caches inside vLLM: the exported decoder, and the connector that lays stored entries in front of a text.

Only `connector` imports vLLM, which runs it in processes of its own.
"""
