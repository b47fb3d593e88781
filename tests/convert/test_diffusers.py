"""What must agree in a folder of diffusers: network and scheduler (of the variance), features of time and channels."""

import dataclasses

import pytest

from jaxdiff.convert import diffusers, dit
from jaxdiff.errors import UsageError
from jaxdiff.models.presets.spec import Spec

TINY = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "num_embeds_ada_norm": 3, "sample_size": 4}
RANGE = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
FIXED = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"}


@pytest.mark.parametrize(
    ("channels", "scheduler", "message"),
    [
        (4, RANGE, "out_channels is 4: allowed is twice in_channels where variance_type is learned_range"),
        (None, RANGE, "out_channels is 4: allowed is twice in_channels where variance_type is learned_range"),
        (5, RANGE, "out_channels is 5: allowed is twice in_channels where variance_type is learned_range"),
        (8, FIXED, "out_channels is 8 in config.json: allowed is 4 where variance_type is fixed_small"),
        (8, {**FIXED, "variance_type": "a\nb" * 500}, "out_channels is 8 in config.json: allowed is 4 where"),
    ],
)
def test_a_scheduler_of_another_network_is_refused(channels, scheduler, message):
    with pytest.raises(UsageError) as error:
        dit.spec({**TINY, "out_channels": channels}, scheduler)
    assert str(error.value).startswith(message)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("channels", "scheduler"), [(8, RANGE), (4, FIXED), (5, FIXED), (8, {}), (4, {})])
def test_what_agrees_or_does_not_say_is_read(channels, scheduler):
    assert dit.spec({**TINY, "out_channels": channels}, scheduler).fields["learned_variance"] == (channels == 8)


@pytest.mark.parametrize(("channels", "scheduler"), [(8, RANGE), (4, FIXED)])
def test_a_changed_network_is_written_with_a_scheduler_that_agrees(channels, scheduler):
    spec = dit.spec({**TINY, "out_channels": channels}, scheduler)
    assert diffusers.scheduler(spec) == scheduler
    changed = dataclasses.replace(spec, fields={**spec.fields, "learned_variance": channels != 8})
    again = dit.spec(dit.config(changed), diffusers.scheduler(changed))
    assert again.fields == changed.fields


def test_the_features_of_time_are_as_many_as_the_first_channels():
    """Theirs always are; ours follow `channels`, whatever the first convolution has."""
    fields = {"channels": 8, "channel_mult": (2, 4), "first_channels": 16, "norm_groups": 4, "num_res_blocks": 1}
    for call in (diffusers.config, diffusers.table):
        with pytest.raises(UsageError, match="channels of the features of time is 8: allowed is 16 for a UNet2DModel"):
            call(Spec("unet", fields, (8, 8, 3)))
