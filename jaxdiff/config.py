"""What a config holds: every key with its default, and the check that there is no other.

Sections `process` and `model` hold a `name` and that object's own arguments; `build` checks them against the object
itself, so a new process or network needs no line here.
"""

from ml_collections import ConfigDict

from jaxdiff.errors import UsageError, unknown


def default_config() -> ConfigDict:
    """Every key of a config, with its default. A config file changes what it needs and returns it."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",  # digits, synthetic, image_folder, or a TFDS name
                "path": "",  # the folder of image_folder
                "data_dir": "",  # where TFDS keeps its sets; "" is TFDS's own default
                "split": "train[:90%]",
                "eval_split": "train[90%:]",  # "" for no evaluation
                "image_size": 8,
                "channels": 1,
                "num_classes": 10,  # 0 trains without labels
                "transforms": (),  # flip, flip_vertical, dequantize
                "skip_corrupt": False,
                "workers": 0,  # processes that read ahead; 0 reads in a thread
            },
            "process": {"name": "ddpm_linear"},
            "model": {"name": "unet"},
            "prediction": "eps",  # eps, x0, v, score, flow, edm
            "input_scale": "none",  # none, unit_variance
            "time_input": "index",  # index, index_between, time, log_snr, log_sigma
            "time_input_args": {},  # its own arguments, such as {"factor": 4.0} of index
            "sigma_data": 0.5,  # the data's standard deviation, where prediction or input_scale need it
            "objective": {
                "name": "denoising",  # denoising, hybrid and vlb (learned variance), elbo, discrete_elbo, sliced_score
                # "" for the objective's own; uniform, stratified, log_normal, uniform_log_snr, logit_normal, mode
                "times": "",
                "times_args": {},  # their own arguments, as a whole: --config.objective.times_args="{'mean': -0.8}"
                # "" for the objective's own; simple, snr, min_snr, soft_min_snr, sigmoid, p2, edm, likelihood
                "weight": "",
                "weight_args": {},  # such as {"gamma": 3.0}
                "args": {},  # the objective's further arguments, such as {"offset": 0.1}
                "label_dropout": 0.1,  # share of null labels; classifier-free guidance needs it
            },
            "optimizer": {
                "name": "adam",  # adam, adamw, adafactor, lion, schedule_free, muon, sgd
                "learning_rate": 2e-4,
                "warmup": 0,  # steps from 0 to the learning rate
                "schedule": "constant",  # constant, cosine (to 0 at train.steps), inverse_sqrt
                "decay_after": 70_000,  # step from which inverse_sqrt falls
                "clip": 1.0,  # largest global gradient norm; 0 for none
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": 0.0,  # of weights, not of biases and gains; adam has none
            },
            "train": {
                "steps": 2000,
                "batch_size": 128,
                "accum": 1,  # parts a batch is computed in
                "ema_decay": 0.9999,
                "power_ema": (),  # widths of averages kept besides, such as (0.05, 0.1) for EDM2's
                "force_normalize": False,  # kernels of unit magnitude after every step, for edm2
                "freeze": (),  # parameters that stay as they are, by path: ("time/*", "*/attn/*")
                "executor": "pmap",  # pmap; mesh, which can spread the state over devices
                "fsdp": 1,  # with mesh: over how many devices
                # Steps in a row without a finite loss and gradient that end the run; looked at when logging or saving.
                "max_skipped": 10,
                "heartbeat": 30,  # seconds without a sign of life after which another process counts as dead
                "watchdog": 0,  # seconds without a step after which the process ends; 0 for never
                "log_every": 100,
                "eval_every": 500,
                "eval_levels": 0,  # noise levels at which evaluation also measures the error, for a plot; 0 for none
                "sample_every": 500,
                "checkpoint_every": 500,
                # Between further checkpoints by the clock, which several processes look at when logging; 0 for none.
                "checkpoint_minutes": 0,
            },
            "sample": {
                "sampler": "ddim",
                "sampler_args": {},  # its own arguments, such as {"eta": 0.5}
                "steps": 50,
                "grid": "uniform",  # uniform, trailing, leading, log_snr, karras
                "guidance": 1.0,  # classifier-free guidance scale; 1 is off
                "matmul": "highest",  # products of float32: highest, high, default (bfloat16 on a TPU, TF32 on a GPU)
                "threshold": False,  # clip the predicted image to [-1, 1]
            },
        }
    )


def check(config: ConfigDict) -> ConfigDict:
    """Refuse keys that no part of the library reads.

    Raises:
        UsageError: naming the key and the nearest one that exists.
    """
    known = default_config()
    for key in config:
        if key not in known:
            raise unknown("config key", key, known)
        if isinstance(known[key], ConfigDict) and key not in ("process", "model"):
            for inner in config[key]:
                if inner not in known[key]:
                    raise unknown("config key", f"{key}.{inner}", [f"{key}.{name}" for name in known[key]])
    for name in ("steps", "log_every", "accum", "max_skipped", "heartbeat"):
        if config.train[name] < 1:
            raise UsageError(f"train.{name}={config.train[name]}: allowed is 1 or more")
    for name in ("eval_every", "sample_every", "checkpoint_every", "checkpoint_minutes"):
        if config.train[name] < 0:
            raise UsageError(f"train.{name}={config.train[name]}: allowed is 0 (never) or more")
    return config
