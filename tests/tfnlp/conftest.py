"""How the tests of training run a step: compiling one takes seconds, running it once milliseconds."""

import pytest


@pytest.fixture(scope="module")
def eagerly():
    """Operation by operation, whatever Keras would have traced and compiled."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def compiled(eagerly):
    """But this test, as people run it."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)
