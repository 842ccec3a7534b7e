"""A model made ready to be called many times: compiled once for each shape, weights laid out for speed."""

import jax
from flax import nnx

from jaxnlp.layers import Linear
from jaxnlp.pretrained import merge, split


def compiled(model):
    """A function with the model's inputs and outputs that runs as one compiled program.

    The kernels are kept transposed, [out, in], in a copy of their own: with few rows, a product that contracts the last
    axis of both sides reads them 1.3 to 1.5 times as fast on a CPU. Later changes of the model do not reach the copy.
    """
    model = transposed(model)
    graphdef, params = split(model)

    @jax.jit
    def run(params, inputs):
        return merge(graphdef, params)(**inputs)

    return lambda **inputs: run(params, inputs)


def transposed(model):
    """A copy of a model whose linear layers hold their kernels as [out, in]; the other weights are shared with it."""
    copy = merge(*split(model))
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Linear) and not module.transposed:
            module.kernel = nnx.Param(module.kernel[...].T)
            module.transposed = True
    return copy
