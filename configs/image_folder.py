"""Your own images: a folder of PNG, JPEG, WebP, BMP or GIF files; subfolders are classes.

    jaxdiff train --config configs/image_folder.py --workdir runs/mine --config.data.path=PATH
    jaxdiff sample --workdir runs/mine --num 36 --out runs/mine/samples

Images are scaled and cropped to 64 x 64 RGB. For a folder with class subfolders give their number,
`--config.data.num_classes=N`, and ask for guidance when sampling.

Hardware: one GPU or TPU; at reduced size (`--config.model.channels=32`) it runs on a CPU, slowly. Not timed here.
Expected: depends on the images; a few thousand are enough to see whether it learns after some 20,000 steps.
"""

from ml_collections import ConfigDict

from jaxdiff.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "image_folder"
    config.data.path = ""
    config.data.split = "train[:95%]"
    config.data.eval_split = "train[95%:]"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 0
    config.data.transforms = ("flip",)
    config.process = {"name": "ddpm_cosine", "num_steps": 1000}
    config.model = {
        "name": "unet",
        "channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16, 8),
        "num_heads": 4,
        "dropout": 0.1,
        "conditioning": "scale_shift",
    }
    config.prediction = "v"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 1000
    config.train.steps = 100_000
    config.train.batch_size = 64
    config.train.eval_every = 5000
    config.train.sample_every = 5000
    config.train.checkpoint_every = 5000
    config.sample.steps = 100
    config.sample.threshold = True
    return config
