"""Run either engine, or Transformers' PyTorch model, and return outputs and gradients: NumPy in, NumPy out."""

import numpy as np

from duonlp import architectures
from duonlp.parameters import parameters


def run(framework: str, folder, head: str, inputs: dict, gradients: bool = True):
    """Return the outputs of a checkpoint, with hidden states and attentions, and the gradient by parameter path."""
    return {"jax": _jax, "tf": _tf, "torch": _torch}[framework](folder, head, inputs, gradients)


def _flat(out) -> dict[str, np.ndarray]:
    flat = {}
    for name, value in out.items():
        if isinstance(value, (tuple, list)):
            flat |= {f"{name}.{i}": np.asarray(v) for i, v in enumerate(value)}
        else:
            flat[name] = np.asarray(value)
    return flat


def _jax(folder, head, inputs, gradients):
    import jax

    import jaxnlp
    from jaxnlp.heads import HEADS

    model = HEADS[head].from_pretrained(folder)
    apply, params = jaxnlp.functional(model)

    def outputs(p):
        return apply(p, **inputs, output_hidden_states=True, output_attentions=True)

    def both(p):  # one program: compiling two takes twice as long
        return outputs(p), jax.grad(lambda p: apply(p, **inputs)["loss"])(p)

    if not gradients or "loss" not in jax.eval_shape(outputs, params):
        return _flat(jax.jit(outputs)(params)), {}
    out, tree = jax.jit(both)(params)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    grads = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
    return _flat(out), grads


def _tf(folder, head, inputs, gradients):
    import tensorflow as tf

    from tfnlp.heads import HEADS
    from tfnlp.pretrained import parameter_tree

    model = HEADS[head].from_pretrained(folder)
    grads = {}
    with tf.GradientTape() as tape:
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    if gradients and "loss" in out:
        tree = parameter_tree(model)
        values = tape.gradient(out["loss"], [variable.value for variable in tree.values()])
        dense = [None if g is None else tf.convert_to_tensor(g).numpy() for g in values]
        shapes = (tuple(variable.shape) for variable in tree.values())
        grads = {p: np.zeros(s, np.float32) if g is None else g for p, g, s in zip(tree, dense, shapes)}
    return _flat(out), grads


def torch_model(folder, head):
    """Return Transformers' model of a checkpoint, asserting that the names of all tensors match."""
    import transformers

    from duonlp.checkpoints import open_checkpoint

    cls = getattr(transformers, architectures.class_of(open_checkpoint(folder).transformer_config(head), head))
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    unused = {name for name in info["missing_keys"] if ".pooler." in name or name.startswith("pooler.")}
    assert not set(info["missing_keys"]) - unused and not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model


def _torch(folder, head, inputs, gradients):
    import torch

    model = torch_model(folder, head).eval()
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    tensors = {k: v if v.is_floating_point() else v.long() for k, v in tensors.items()}
    out = model(**tensors, output_hidden_states=True, output_attentions=True)
    grads = {}
    if gradients and out.get("loss") is not None:
        out["loss"].backward()
        from duonlp.checkpoints.checkpoint import open_checkpoint
        from duonlp.checkpoints.layouts import our_layout

        cfg = open_checkpoint(folder).transformer_config()
        family = architectures.get(cfg.model_type)
        named = dict(model.named_parameters(remove_duplicate=False))
        spec = parameters(cfg, head)
        for row in family.weights(cfg, head):
            if row.path is None:
                continue
            names = [n if head != "base" else n.removeprefix(family.PREFIX) for n in (row.name, *row.aliases)]
            name = next((name for name in names if name in named), None)
            if name is None:  # a buffer, not a parameter
                grads[row.path] = np.zeros(spec[row.path].shape, np.float32)
                continue
            grad = named[name].grad
            grad = np.zeros(named[name].shape, np.float32) if grad is None else grad.numpy()
            grad = our_layout(row.layout, grad)
            grads[row.path] = grad if row.part is None else row.part.of(grad)
        assert set(grads) == set(spec)
    out = {k: v for k, v in out.items() if isinstance(v, (torch.Tensor, tuple, list))}  # not its cache
    if architectures.base_classes(model.config.model_type):  # DPR's classes leave it out
        out["last_hidden_state"] = out["hidden_states"][-1]
    detached = {k: [t.detach() for t in v] if isinstance(v, (tuple, list)) else v.detach() for k, v in out.items()}
    return _flat(detached), grads


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest absolute difference, relative to the largest absolute value of ``theirs``."""
    scale = max(float(np.abs(theirs).max(initial=0)), 1e-6)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max(initial=0)) / scale
