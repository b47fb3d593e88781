"""Class-conditional handwritten digits, 8x8: scikit-learn's 1,797 scans, on any machine, without a download.

    jaxdiff train --config configs/digits.py --workdir runs/digits
    jaxdiff sample --workdir runs/digits --num 100 --out runs/digits/samples

Hardware: two CPU cores; measured 3 min 38 s for the training command with jax 0.10.2, compilation included.
Expected: measured with `benchmarks/digits_accuracy.py`: of 500 samples (50 DDIM steps) a support vector machine trained
on the real digits names 100 % as asked for at the default guidance 2, and 97.6 % without guidance; no copies of
training images.
"""

from ml_collections import ConfigDict

from jaxdiff.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.process = {"name": "ddpm_linear", "num_steps": 1000}
    config.model = {
        "name": "unet",
        "channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.0,
        "norm_groups": 8,
        "conditioning": "scale_shift",
    }
    config.objective.times = "stratified"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 100
    config.optimizer.schedule = "cosine"
    config.train.batch_size = 64
    config.train.steps = 1500
    config.train.ema_decay = 0.995
    config.sample.guidance = 2.0
    return config
