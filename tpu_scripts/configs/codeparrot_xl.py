"""CodeParrot: GPT-2 XL's architecture, 1.5B parameters, 26B tokens of Python, parameters sharded over 16 chips.

The settings of the model card: 50,000 steps of 512 blocks of 1,024 tokens, peak learning rate 2e-4 after 750 steps of
warm-up, cosine decay to 0.

    python tpu_scripts/compile_check.py --topology v5e:16x16 --model codeparrot --mesh data=-1,fsdp=16 --remat full
    tpu_scripts/launch.sh --name codeparrot-xl --zone us-west4-a --accelerator-type v5litepod-256 \
        --version v2-alpha-tpuv5-lite --queued \
        -- python tpu_scripts/pretrain.py tpu_scripts/configs/codeparrot_xl.py --data /mnt/codeparrot --output /mnt/run-xl
"""

CONFIG = {
    "corpus": "hub://transformersbook/codeparrot",
    "tokenizer": {"kind": "bpe", "vocab_size": 32768},
    "block_length": 1024,
    "model": {
        "model_type": "gpt2",
        "n_embd": 1600,
        "n_layer": 48,
        "n_head": 25,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "training": {
        "steps": 50_000,
        "batch_size": 512,
        "learning_rate": 2e-4,
        "warmup_share": 750 / 50_000,
        "final_share": 0.0,
        "weight_decay": 0.1,
        "beta2": 0.999,
        "dtype": "bfloat16",
        "mesh": {"data": -1, "fsdp": 16},
        "scan": True,
        "remat": "full",
        "log_every": 50,
        "evaluate_every": 2_500,
        "save_every": 1_000,
        "keep_every": 10_000,
    },
}
