"""Training: examples in, a better model out, on the Hugging Face Trainer."""
