"""Images for training and evaluation: sources, transforms, and batches that are a pure function of (seed, step).

    source = load(make("digits"))
    batches = Batches(source, batch_size=128, seed=0, transforms=transforms.make(("flip",)))
    for batch in prefetch(iterate(batches, start=0, stop=1000), jax.device_put):
        batch["x0"], batch["cond"]["label"]

NumPy only: putting a batch on devices is the training loop's part, which hands `prefetch` the function that does it.
"""

from jaxdiff.data import transforms
from jaxdiff.data.devices import prefetch
from jaxdiff.data.memory import InMemory, load
from jaxdiff.data.pipeline import Batches, iterate
from jaxdiff.data.sources import Source, make

__all__ = ["Batches", "InMemory", "Source", "iterate", "load", "make", "prefetch", "transforms"]
