"""Fixtures that choose whether training steps are compiled, which takes seconds, or run eagerly, in milliseconds."""

import pytest


@pytest.fixture(scope="module")
def eagerly():
    """Run all tf.functions eagerly."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def compiled(eagerly):
    """Compile tf.functions in this test, as users do, although its module runs eagerly."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)
