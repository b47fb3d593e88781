"""Improved DDPM on CIFAR-10: cosine schedule, learned variance and L_hybrid, Nichol & Dhariwal 2021 (arXiv:2102.09672).

    jaxdiff train --config configs/cifar10_iddpm_cosine.py --workdir runs/cifar10_cosine
    jaxdiff sample --workdir runs/cifar10_cosine --num 64 --out runs/cifar10_cosine/samples

The data set is prepared as `configs/cifar10_ddpm.py` says. Architecture, T = 4000, learning rate, batch size, dropout,
500,000 steps, and L_hybrid with its learned variance are those of the authors' published command for CIFAR-10.

Hardware: one 16 GB accelerator or more; not timed here.
Expected: not measured here. 52.5 M parameters.
"""

from ml_collections import ConfigDict

from jaxdiff.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar10"
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 0
    config.data.transforms = ("flip",)
    config.process = {"name": "ddpm_cosine", "num_steps": 4000}
    config.model = {
        "name": "unet",
        "channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 3,
        "attention_resolutions": (16, 8),
        "num_heads": 4,
        "dropout": 0.3,
        "conditioning": "scale_shift",
        "learned_variance": True,
    }
    config.objective.name = "hybrid"
    config.optimizer.learning_rate = 1e-4
    config.train.steps = 500_000
    config.train.batch_size = 128
    config.train.ema_decay = 0.9999
    config.train.log_every = 500
    config.train.eval_every = 10_000
    config.train.sample_every = 50_000
    config.train.checkpoint_every = 10_000
    config.sample.sampler = "ddpm"
    config.sample.sampler_args = {"variance": "learned"}
    config.sample.steps = 4000
    config.sample.threshold = True
    return config
