"""DDPM on CIFAR-10, unconditional, with the numbers of Ho, Jain, Abbeel 2020 (arXiv:2006.11239, appendix B).

    pip install 'jaxdiff[tf]'      # once, to prepare the data set
    python -c "import tensorflow_datasets as tfds; \
        tfds.builder('cifar10', file_format='array_record').download_and_prepare()"
    jaxdiff train --config configs/cifar10_ddpm.py --workdir runs/cifar10
    jaxdiff sample --workdir runs/cifar10 --num 64 --out runs/cifar10/samples

Hardware: the paper's was a TPU v3-8, at 21 steps a second: 10.6 hours for the 800,000 steps.
Expected: the paper reports FID 3.17 and Inception score 9.46 on 50,000 samples of 1000 ancestral steps with the
`beta` variance. Not yet measured here. 35.7 M parameters, as in the paper.
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
    config.process = {"name": "ddpm_linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    config.model = {
        "name": "unet",
        "channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16,),
        "dropout": 0.1,
    }
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 5000
    config.train.steps = 800_000
    config.train.batch_size = 128
    config.train.ema_decay = 0.9999
    config.train.log_every = 500
    config.train.eval_every = 10_000
    config.train.sample_every = 50_000
    config.train.checkpoint_every = 10_000
    config.sample.sampler = "ddpm"
    config.sample.sampler_args = {"variance": "beta"}
    config.sample.steps = 1000
    config.sample.threshold = True
    return config
