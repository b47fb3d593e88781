"""Stores what OpenAI's own code answers: fixtures/openai.npz and fixtures/openai_shapes.json.gz.

    python tests/parity/make_openai.py --guided GUIDED_DIFFUSION --improved IMPROVED_DIFFUSION

with PyTorch and checkouts of openai/guided-diffusion and openai/improved-diffusion. The published models are those of
the two READMEs, made from the flags that stand there, on the meta device; they go by the names of their files.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import torch
from common import save_cases, save_shapes, tensors

# Arguments of the original classes; "size" and "low" are the sides of the images given, "code" says whose class.
UNET = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}
CASES = {
    "plain": {**UNET, "num_heads": 2, "size": [8, 12]},
    "pooled": {**UNET, "conv_resample": False, "use_scale_shift_norm": True, "use_new_attention_order": True},
    "adm": {
        **UNET, "attention_resolutions": [1, 2], "num_head_channels": 16, "num_classes": 5, "out_channels": 6,
        "use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True,
    },
    "upsampler": {
        **UNET, "model_channels": 64, "channel_mult": [0.5, 1], "num_heads": 4, "num_classes": 4, "out_channels": 6,
        "use_scale_shift_norm": True, "resblock_updown": True, "low": [4, 4], "size": [16, 16],
    },
    "improved": {
        **UNET, "code": "improved", "channel_mult": [1, 1, 2], "num_res_blocks": 2, "attention_resolutions": [2, 4],
        "num_heads": 4, "use_scale_shift_norm": True, "out_channels": 6,
    },
    "improved_upsampler": {**UNET, "code": "improved", "num_classes": 6, "low": [2, 2]},
    "classifier": {
        **UNET, "pool": "attention", "num_head_channels": 16, "out_channels": 10, "attention_resolutions": [1, 2],
        "use_scale_shift_norm": True, "resblock_updown": True,
    },
    "classifier_adaptive": {**UNET, "pool": "adaptive", "num_heads": 4, "out_channels": 10},
    "classifier_spatial": {**UNET, "pool": "spatial", "num_heads": 4, "out_channels": 10, "use_scale_shift_norm": True},
}  # fmt: skip


def case(code, config):
    """The inputs and the output of one small network, in float64."""
    given = {"in_channels": 3, "out_channels": 3, "image_size": 8, **config}
    side, low, owner = given.pop("size", [8, 8]), given.pop("low", None), given.pop("code", "guided")
    if owner == "improved":
        del given["image_size"]
    made = (
        code[owner].SuperResModel if low else code[owner].EncoderUNetModel if "pool" in given else code[owner].UNetModel
    )
    model = made(**given).double().eval()
    if "dtype" in vars(model):
        model.dtype = torch.float64  # what `forward` casts to
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors(shapes).items()}, strict=True)

    draw = np.random.RandomState(7)
    arrays = {"x": draw.normal(size=(2, 3, *side)), "t": np.array([3.0, 417.0])}
    if low:
        arrays["low_res"] = draw.normal(size=(2, 3, *low))
    if given.get("num_classes"):
        arrays["y"] = draw.randint(given["num_classes"], size=2)
    arrays = {k: v if k == "y" else v.astype(np.float32) for k, v in arrays.items()}
    inputs = {k: torch.from_numpy(v) if k == "y" else torch.from_numpy(v).double() for k, v in arrays.items()}
    with torch.no_grad():
        out = model(inputs.pop("x"), inputs.pop("t"), **inputs)
    return {"config": config, "shapes": shapes, **arrays, "out": out.numpy().astype(np.float32)}


def flags(text):
    """The flags of a command line, as text."""
    return dict(re.findall(r"--(\w+) (\S+)", text))


def remember(util, name):
    """Have a class of theirs note what it is made with, as `given`."""
    original = getattr(util, name)

    def make(**given):
        model = original(**given)
        model.given = {key: value for key, value in given.items() if key not in ("use_fp16", "use_checkpoint")}
        return model

    setattr(util, name, make)


def created(util, given, *, low):
    """The model that the published scripts would make of these flags, and what they are told of time."""
    defaults = util.sr_model_and_diffusion_defaults() if low else util.model_and_diffusion_defaults()
    make = util.sr_create_model if low else util.create_model
    for name, value in given.items():
        if name in defaults:
            kind = type(defaults[name])
            defaults[name] = util.str2bool(value) if kind is bool else kind(value)
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    model = make(**{name: defaults[name] for name in names if name in defaults})
    side = defaults["large_size" if low else "image_size"]
    model.given |= {"size": [side, side]} | ({"low": [defaults["small_size"]] * 2} if low else {})
    model.given |= {name: defaults[name] for name in ("diffusion_steps", "noise_schedule", "rescale_timesteps")}
    return model


def published(code, folders):
    """{file: model} for every model of the READMEs."""
    for util in (code["guided_util"], code["improved_util"]):
        for name in ("UNetModel", "SuperResModel", "EncoderUNetModel"):
            if hasattr(util, name):
                remember(util, name)
    models = {}
    readme = (folders["guided"] / "README.md").read_text()
    for line, run in re.findall(r'MODEL_FLAGS="(.*)"\npython (.*)', readme):
        name = re.search(r"--model_path models/(\w+)\.pt", run)[1]
        models[name] = created(code["guided_util"], flags(line), low="upsampler" in name)
        if "--classifier_path" in run:
            name = re.search(r"--classifier_path models/(\w+)\.pt", run)[1]
            defaults = code["guided_util"].classifier_defaults()
            defaults["image_size"] = int(flags(line)["image_size"])
            defaults["classifier_depth"] = int(flags(run).get("classifier_depth", defaults["classifier_depth"]))
            models[name] = code["guided_util"].create_classifier(**defaults)
            base = models[re.search(r"--model_path models/(\w+)\.pt", run)[1]].given
            models[name].given |= {key: base[key] for key in ("size", "diffusion_steps", "noise_schedule")}
    readme = (folders["improved"] / "README.md").read_text()
    pattern = r'/(\w+)\.pt\)\]:\s+```bash\nMODEL_FLAGS="(.*)"\nDIFFUSION_FLAGS="(.*)"'
    for name, *lines in re.findall(pattern, readme):
        models[name] = created(code["improved_util"], flags(" ".join(lines)), low="upsample" in name)
    return models


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guided", type=Path, required=True)
    parser.add_argument("--improved", type=Path, required=True)
    folders = vars(parser.parse_args())
    sys.path[:0] = [str(folder) for folder in folders.values()]
    from guided_diffusion import script_util as guided_util
    from guided_diffusion import unet as guided
    from improved_diffusion import script_util as improved_util
    from improved_diffusion import unet as improved

    code = {"guided": guided, "improved": improved, "guided_util": guided_util, "improved_util": improved_util}
    with torch.device("meta"):
        models = published(code, folders)
    shapes_of = {name: {k: tuple(v.shape) for k, v in model.state_dict().items()} for name, model in models.items()}
    save_shapes("openai", shapes_of)
    for name, shapes in shapes_of.items():
        print(f"{name:40} {sum(int(np.prod(s)) for s in shapes.values()):>12,}")

    torch.Tensor.float = torch.Tensor.double  # the code casts where it wants at least float32
    cases = {name: case(code, config) for name, config in CASES.items()}
    save_cases("openai", {**cases, "published": {"config": {name: model.given for name, model in models.items()}}})


if __name__ == "__main__":
    main()
