"""The paper's own measurements, repeated: retention of accuracy, and efficiency."""
