"""Everything of duonlp that needs neither TensorFlow nor JAX: it takes and gives NumPy."""

__version__ = "0.1.0"
