"""The framework-neutral part of the library: it takes and returns NumPy arrays and imports neither TensorFlow nor JAX."""

__version__ = "0.1.0"
