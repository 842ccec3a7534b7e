"""CodeParrot small: GPT-2 small's architecture, 110M parameters, byte-level BPE of 32,768 tokens, 29B tokens of Python.

The settings of "Natural Language Processing with Transformers", chapter 10, and of the model card: 150,000 steps of 192
blocks of 1,024 tokens, peak learning rate 5e-4 after 2,000 steps of warm-up, cosine decay to 0. On a slice of 16 chips:

    python tpu_scripts/prepare.py tpu_scripts/configs/codeparrot_small.py --data /mnt/codeparrot
    tpu_scripts/launch.sh --name codeparrot --zone us-west4-a --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite \
        -- python tpu_scripts/pretrain.py tpu_scripts/configs/codeparrot_small.py --data /mnt/codeparrot --output /mnt/run
"""

CONFIG = {
    "corpus": "hub://transformersbook/codeparrot",
    "tokenizer": {"kind": "bpe", "vocab_size": 32768},
    "block_length": 1024,
    "model": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12},
    "training": {
        "steps": 150_000,
        "batch_size": 192,
        "learning_rate": 5e-4,
        "warmup_share": 2_000 / 150_000,
        "final_share": 0.0,
        "weight_decay": 0.1,
        "beta2": 0.999,
        "dtype": "bfloat16",
        "mesh": {"data": -1},
        "scan": True,
        "remat": "dots",
        "log_every": 50,
        "evaluate_every": 2_500,
        "save_every": 2_500,
        "keep_every": 10_000,
    },
}
