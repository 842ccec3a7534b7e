"""A code model of 13M parameters for one CPU, trained on the Python standard library and the installed packages.

Takes half an hour on two cores; docs/pretraining.md shows the results.

    python tpu_scripts/prepare.py tpu_scripts/configs/python_small.py --data data
    python tpu_scripts/pretrain.py tpu_scripts/configs/python_small.py --data data --output run --host-devices 2
    python tpu_scripts/export.py run --data data --output model
"""

CONFIG = {
    "corpus": ["standard-library", "installed-packages"],
    "held_out": 0.02,
    "tokenizer": {"kind": "bpe", "vocab_size": 8192},
    "block_length": 256,
    "model": {
        "model_type": "gpt2", "n_embd": 384, "n_layer": 6, "n_head": 6,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "training": {
        "steps": 2_000,
        "seconds": 1_500,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "log_every": 10,
        "evaluate_every": 100,
        "evaluate_batches": 32,
        "save_every": 250,
    },
}  # fmt: skip
