"""The service over a store: OpenAI's chat protocol, the store's routes, and a page (docs/serving.md)."""
