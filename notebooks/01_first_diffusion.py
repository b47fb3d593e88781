# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first diffusion model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxdiff/jaxdiff/blob/main/notebooks/01_first_diffusion.ipynb)
#
# A diffusion model turns noise into data by many small denoising steps. This notebook builds one from its parts, with
# plain functions:
#
# 1. the data, 8x8 handwritten digits;
# 2. the forward process, which turns data into noise;
# 3. a denoiser and a sampler, first for a distribution whose best denoiser is known exactly, so without training;
# 4. a small U-Net that learns to denoise digits;
# 5. sampling from it: DDIM, classifier-free guidance, DDPM.
#
# It needs a little Python, NumPy and JAX. It runs in a few minutes on two CPU cores. No data is downloaded.

# %%
import subprocess
import sys

if "google.colab" in sys.modules:
    source_url = "git+https://github.com/jaxdiff/jaxdiff"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source_url], check=True)

# %%
import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.svm import SVC

import jaxdiff
from jaxdiff import analytic, data, grids, guidance, models, objectives, pictures, prediction, processes, samplers
from jaxdiff.data.transforms import to_uint8
from jaxdiff.model import Index
from jaxdiff.train import EMA, TrainState, make_train_step

# JAXDIFF_FAST=1 runs every cell with little training and few samples: a test of the code, not of the model.
FAST = os.environ.get("JAXDIFF_FAST") == "1"
STEPS = 20 if FAST else 1000  # optimiser steps
NUM = 10 if FAST else 200  # samples to count on


def show(x, columns, title="", ax=None, names=()):
    """Images in [-1, 1], shape [N, H, W, 1], tiled into rows of `columns`; a name above each column."""
    tiles = pictures.grid(to_uint8(np.asarray(x)), columns)[..., 0]
    if ax is None:
        _, ax = plt.subplots(figsize=(0.6 * columns, 0.6 * len(x) / columns + 0.3), layout="constrained")
    ax.imshow(tiles, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    for i, name in enumerate(names):
        ax.text((i + 0.5) / columns, 1.02, name, transform=ax.transAxes, ha="center", va="bottom", fontsize=9)


# %% [markdown]
# ## 1. The data
#
# `data.make` opens a data set by name and `data.load` decodes it into memory. The digits come with scikit-learn. We
# train on the first 90 % and keep the rest for a check. `Batches` is an endless shuffled stream with random access:
# `batches[step]` depends on the seed and the step alone. Images are float32 in $[-1, 1]$, channels last. The label is
# the condition, `cond`.

# %%
train_set = data.load(data.make("digits", split="train[:90%]"))
test_set = data.load(data.make("digits", split="train[90%:]"))
batches = data.Batches(train_set, batch_size=64, seed=0)
batch = batches[0]
x0, labels = batch["x0"], batch["cond"]["label"]

print(f"{len(train_set)} training images of shape {train_set.shape}, {train_set.num_classes} classes")
print(f"a batch: x0 {x0.dtype} {x0.shape} in [{x0.min():g}, {x0.max():g}], label {labels.dtype} {labels.shape}")
assert np.array_equal(batches[0]["x0"], x0)  # the same step, the same batch
show(x0[:20], 10, "training images: " + " ".join(str(label) for label in labels[:20]))

# %% [markdown]
# ## 2. The forward process: from data to noise
#
# At time $t \in [0, 1]$ a clean example $x_0$ has become
#
# $$ x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, I). $$
#
# $t = 0$ is data and $t = 1$ is noise. DDPM (arXiv:2006.11239) uses a *variance-preserving* process,
# $\alpha_t^2 + \sigma_t^2 = 1$, given by a table of 1000 steps; its $\bar\alpha_t$ is our $\alpha_t^2$.
# Calling a process with a time gives a `Level`: `t`, `alpha`, `sigma` and `log_snr`
# $= \log(\alpha_t^2 / \sigma_t^2)$, the logarithm of the signal-to-noise ratio.
# `q_sample` draws $x_t$ in one step, for any $t$.

# %%
process = processes.ddpm_linear()
times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0], np.float32)
three = jnp.asarray(x0[[0, 1, 2]])
eps = jax.random.normal(jax.random.key(0), three.shape)
noised = jnp.stack([jaxdiff.q_sample(process, three, t, eps) for t in times])

level = process(times[3])
np.testing.assert_allclose(noised[3], level.alpha * three + level.sigma * eps, atol=1e-6)
np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-6)
np.testing.assert_allclose(noised[0], three, atol=1e-6)  # t = 0: clean
assert float(process(1.0).alpha) < 0.01  # t = 1: hardly any signal

show(noised.swapaxes(0, 1).reshape(-1, 8, 8, 1), len(times), names=[f"t = {t:g}" for t in times])

# %% [markdown]
# How fast the signal goes is the *noise schedule*. The linear schedule is DDPM's, the cosine schedule is from
# improved DDPM (arXiv:2102.09672). Signal and noise are equally strong where the log-SNR is 0. The linear schedule is
# there after about a quarter of the time, the cosine schedule after half. `process.at(log_snr)` finds the level.

# %%
schedules = {"linear": processes.ddpm_linear(), "cosine": processes.ddpm_cosine()}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
t = np.linspace(1e-3, 1, 1000)
for name, schedule in schedules.items():
    level, equal = schedule(t), schedule.at(0.0)
    left.plot(t, level.alpha**2, label=name)
    right.plot(t, level.log_snr, label=name)
    right.plot(equal.t, 0, "k.")
    print(f"{name}: equal signal and noise at t = {equal.t:.2f}")
left.set(xlabel="t", title=r"signal, $\bar\alpha_t = \alpha_t^2$")
right.set(xlabel="t", title=r"log-SNR, $\log(\alpha_t^2 / \sigma_t^2)$", ylim=(-15, 12))
right.axhline(0, color="k", lw=0.5)
for ax in (left, right):
    ax.grid(alpha=0.3)
    ax.legend()
assert abs(schedules["linear"].at(0.0).t - 0.25) < 0.02
assert abs(schedules["cosine"].at(0.0).t - 0.5) < 0.02

# %% [markdown]
# ## 3. A denoiser and a sampler, without training
#
# To go back from noise to data, a *denoiser* answers one question: given $x_t$ and the noise level, what was $x_0$ on
# average, $\mathbb{E}[x_0 \mid x_t]$? From that follows its estimate of the noise, because
# $\alpha_t \hat x_0 + \sigma_t \hat\varepsilon = x_t$.
#
# For a mixture of Gaussians this mean has a closed form, and `analytic.Mixture` computes it. Here the data are single
# numbers around three values, with probabilities 0.5, 0.2 and 0.3.

# %%
weights, modes, width = jnp.array([0.5, 0.2, 0.3]), jnp.array([-1.4, 0.0, 1.2]), 0.12
mixture = analytic.Mixture(weights, modes[:, None], jnp.full((3, 1, 1), width**2))
exact = mixture.denoiser(process)

x = jnp.linspace(-2, 2, 400)[:, None]
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for t in (0.05, 0.15, 0.3, 1.0):
    level = process(t)
    answer = exact(x, level)
    np.testing.assert_allclose(level.alpha * answer.x0 + level.sigma * answer.eps, x, atol=1e-5)
    ax.plot(x, answer.x0, label=f"t = {t:g}")
ax.set(xlabel="$x_t$", ylabel=r"$\mathbb{E}[x_0 \mid x_t]$", title="the exact denoiser of three modes")
ax.set_yticks(np.asarray(modes).round(1))
ax.grid(alpha=0.3)
ax.legend()

data_mean = jnp.sum(weights * modes)
print(f"mean of the data {data_mean:.2f}; the answers at t = 1 are in [{answer.x0.min():.2f}, {answer.x0.max():.2f}]")
assert jnp.abs(answer.x0 - data_mean).max() < 0.05

# %% [markdown]
# With much noise the best answer is the mean of all data, whatever the input. With little noise it is close to the
# mode nearest to the input, and the steps between the modes are steep.
#
# A *sampler* starts from pure noise and moves through a list of levels down to $t = 0$, asking the denoiser at each.
# It needs nothing else. DDIM (arXiv:2010.02502) is deterministic,
#
# $$ x_{\text{next}} = \alpha_{\text{next}} \hat x_0 + \sigma_{\text{next}} \hat\varepsilon, $$
#
# and DDPM draws the next point from $q(x_{\text{next}} \mid x_t, \hat x_0)$, so it adds fresh noise at each step.
# Both should end at the data's distribution.
#
# `grids.uniform` makes the levels, `prior_sample` the start, and `sample` runs the loop. Its argument `collect` says
# what to keep of every step; `samplers.trajectory` keeps $x$.

# %%
count, key = 2000, jax.random.key(1)
levels = grids.uniform(process, 500)
start = jaxdiff.prior_sample(process, key, (count, 1))
ts, xs = np.linspace(0, 1, 200), jnp.linspace(-3, 3, 300)[:, None]
density = jax.vmap(lambda t: jnp.exp(mixture.log_prob(xs, process(t))))(jnp.asarray(ts))

fig, axes = plt.subplots(2, 2, figsize=(9, 5), width_ratios=(4, 1), sharey=True, layout="constrained")
for (ax, side), sampler in zip(axes, (samplers.DDIM(), samplers.DDPM()), strict=True):
    final, path = jaxdiff.sample(exact, sampler, levels, start, key, collect=samplers.trajectory)
    path = jnp.concatenate([start[None], path])[:, :, 0]
    ax.imshow(density.T, origin="lower", extent=(0, 1, -3, 3), aspect="auto", cmap="Greys", vmax=1.2)
    ax.plot(levels.t, path[:, :15], lw=0.9)
    ax.set(xlim=(1, 0), ylim=(-3, 3), ylabel="$x_t$", title=f"{type(sampler).__name__}: 15 paths from noise to data")
    side.hist(final[:, 0], bins=80, range=(-3, 3), density=True, orientation="horizontal", color="tab:blue", alpha=0.6)
    side.plot(density[0], xs, "k", lw=1)
    side.set(title="samples, density", xlabel="density")

    nearest = jnp.argmin(jnp.abs(final - modes[None]), axis=1)
    shares = jnp.bincount(nearest, length=3) / count
    spread = jnp.std(final[:, 0] - modes[nearest])
    print(f"{sampler}: shares of the modes {np.asarray(shares).round(2)}, spread in a mode {spread:.3f}")
    np.testing.assert_allclose(shares, weights, atol=0.05)
    np.testing.assert_allclose(spread, width, rtol=0.1)
axes[0, 0].set_xticklabels([])
_ = axes[1, 0].set_xlabel("process time t (shading: density of $x_t$)")

# %% [markdown]
# Both end at the three modes in the right proportions and with the right width, 0.12. The paths of DDIM are smooth and
# those of DDPM are rough.
#
# So a good denoiser is all we need. For digits there is no closed form, and a network learns it.
#
# ## 4. The network and its objective
#
# `models.make("unet", ...)` is a small U-Net (arXiv:2006.11239, appendix B) with a label embedding. A `Model` joins the
# network to the process and says what its output means. Here it is the noise, `prediction.EPS`. `Index(1000)` hands
# the network the row of the process's table as its time, as DDPM does.
#
# The objective draws a random level for each image, noises the image and compares the network's answer with the noise:
#
# $$ L = \mathbb{E}_{x_0, t, \varepsilon} \, \frac{1}{D} \| \hat\varepsilon(x_t, t, \text{label}) - \varepsilon \|^2 $$
#
# for images of $D$ pixels. `Stratified` spreads the levels of a batch evenly. `ConditionDropout` replaces 10 % of the
# labels by a *null label*, 10, so that the same network also learns to denoise without knowing the label.

# %%
NULL = train_set.num_classes  # the null label follows the classes 0 to 9
network = models.make(
    "unet",
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.0,
    norm_groups=8,
    conditioning="scale_shift",
    num_classes=train_set.num_classes,
)
model = jaxdiff.Model(network, process, prediction.EPS, time_input=Index(process.num_steps))
params = network.init(jax.random.key(0), x0[:1], cond={"label": labels[:1]})
print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

denoising = objectives.Denoising(objectives.Stratified())
objective = objectives.ConditionDropout(denoising, rate=0.1, null=(("label", NULL),))


@jax.jit
def test_loss(params):
    """The objective on the held-out images, always with the same noise."""
    images, labels = test_set.images, test_set.labels
    held_out = {"x0": data.transforms.ToUnitRange()(images), "cond": {"label": jnp.asarray(labels)}}
    keys = jax.random.split(jax.random.key(7), len(images))
    return objectives.Denoising(objectives.Stratified(), train=False)(model, params, held_out, keys)[0].mean()


# Before training the network answers 0, so its mean squared error is the variance of the noise, 1.
print(f"held-out loss before training: {test_loss(params):.3f}")
np.testing.assert_allclose(test_loss(params), 1.0, atol=0.05)

# %% [markdown]
# ## 5. Training
#
# `make_train_step` builds a pure function `step(state, batch) -> (state, metrics)`, which we compile with `jax.jit`.
# The optimiser is Adam, with a learning rate that rises over the first steps and then falls along a cosine. `EMA`
# keeps an exponential moving average of the parameters, and we sample from that.

# %%
warmup = min(100, STEPS // 4)
learning_rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, warmup, STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))

step = jax.jit(make_train_step(partial(objective, model), optimizer, {"ema": EMA(0.995)}))
state = TrainState.create(params, optimizer)

losses, began = [], time.perf_counter()
for i in range(STEPS):
    state, metrics = step(state, batches[i])
    losses.append(metrics["loss"])
losses = np.array(losses)
trained = state.ema["ema"]

print(f"{STEPS} steps in {time.perf_counter() - began:.0f} s")
print(f"training loss of the last steps {losses[-100:].mean():.3f}; held-out loss {test_loss(trained):.3f}")
assert test_loss(trained) < (0.95 if FAST else 0.15)

smooth = np.convolve(losses, np.ones(25) / 25, mode="valid")
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.semilogy(losses, color="tab:blue", alpha=0.3, lw=0.7, label="loss of each batch")
ax.semilogy(np.arange(len(smooth)) + 24, smooth, color="tab:blue", label="mean of 25 batches")
ax.set(xlabel="optimiser step", ylabel="loss", title="training")
ax.grid(alpha=0.3, which="both")
_ = ax.legend()

# %% [markdown]
# The loss does not go to 0: the noise cannot be told from the noisy image exactly. It is also no measure of the
# quality of samples, so let us look at some.
#
# ## 6. Sampling and classifier-free guidance
#
# `generate` draws from the prior and runs a sampler. The 1000 steps of the process are not all needed: DDIM with 50
# steps visits 50 of its levels.
#
# *Classifier-free guidance* (arXiv:2207.12598) uses the null label. At each step the network answers with and without
# the label, and the difference is exaggerated:
#
# $$ \hat x_0 = \hat x_0(\text{label}) + (s - 1) \, \big( \hat x_0(\text{label}) - \hat x_0(\text{null}) \big), $$
#
# and $\hat\varepsilon$ alike. The scale $s = 1$ is off. In `jaxdiff` guidance is a function from a denoiser to a
# denoiser, so it works with any sampler.

# %%
grid50 = grids.uniform(process, 50)
digits = {"label": jnp.arange(NUM) % 10}
samples = {}
for scale in (1.0, 2.0):
    samples[scale] = jaxdiff.generate(
        model,
        trained,
        jax.random.key(2),
        (NUM, 8, 8, 1),
        sampler=samplers.DDIM(),
        levels=grid50,
        cond=digits,
        transforms=(guidance.classifier_free(scale, {"label": NULL}),),
    )

rows = min(NUM, 60)
fig, axes = plt.subplots(1, 2, figsize=(10, 0.45 * rows / 10 + 0.9), layout="constrained")
for ax, (scale, x) in zip(axes, samples.items(), strict=True):
    show(x[:rows], 10, f"DDIM, 50 steps, guidance scale {scale:g}; a column per digit", ax)

# %% [markdown]
# Both pictures start from the same noise. Is each image the digit that was asked for? A support vector machine that
# saw only real digits can judge. Guidance makes samples agree with their label more often, and makes those of one
# class more alike: the standard deviation of the pixels within a class shrinks.

# %%
flat = train_set.images.reshape(len(train_set), -1) / 127.5 - 1.0
judge = SVC().fit(flat, train_set.labels)
real = judge.score(test_set.images.reshape(len(test_set), -1) / 127.5 - 1.0, test_set.labels)


def agreement(x, labels):
    """The share of images that the judge names as asked for."""
    return judge.score(np.clip(np.asarray(x), -1, 1).reshape(len(x), -1), np.asarray(labels))


def variety(x, labels):
    """The standard deviation of a pixel within a class, root mean square over pixels and classes."""
    groups = [np.asarray(x)[np.asarray(labels) == label] for label in range(10)]
    return np.sqrt(np.mean([group.var(axis=0).mean() for group in groups]))


print(
    f"real held-out digits: the judge agrees with {real:.1%}; "
    f"variety of the training images {variety(flat, train_set.labels):.3f}"
)
for scale, x in samples.items():
    print(
        f"guidance scale {scale:g}: the judge agrees with {agreement(x, digits['label']):.1%}; "
        f"variety {variety(x, digits['label']):.3f}"
    )
if not FAST:
    assert agreement(samples[2.0], digits["label"]) >= agreement(samples[1.0], digits["label"]) > 0.8
    assert variety(samples[2.0], digits["label"]) < variety(samples[1.0], digits["label"])

# %% [markdown]
# ### The reverse process as a strip
#
# `generate` is short for three calls: `model.denoiser`, `prior_sample` and `sample`. With `sample` we can `collect` the
# moments in between. The upper row of each pair is $x_t$, the lower row is what the denoiser takes for $x_0$ at that
# moment, $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$. The first guesses are rough: near $t = 1$ the
# division by a small $\alpha_t$ magnifies every error of the network. Then a blurred digit appears, which gets sharper.
# At $t = 0.5$, where $x_t$ still looks like noise, the guess is already near the final image.

# %%
denoise = guidance.classifier_free(2.0, {"label": NULL})(model.denoiser(trained))
cond = {"label": jnp.array([3, 8])}
key = jax.random.key(3)
start = jaxdiff.prior_sample(process, key, (2, 8, 8, 1))
final, moments = jaxdiff.sample(denoise, samplers.DDIM(), grid50, start, key, cond=cond, collect=samplers.trajectory)
moments = jnp.concatenate([start[None], moments])
np.testing.assert_array_equal(moments[-1], final)

shown = np.linspace(0, 50, 11).round().astype(int)
seen = moments[shown].swapaxes(0, 1)  # [2, 11, 8, 8, 1]
repeated = {"label": jnp.repeat(cond["label"], len(shown))}
at = process(jnp.tile(grid50.t[shown], 2))  # one level per image
answer = jax.jit(lambda x: denoise(x, at, repeated))(seen.reshape(-1, 8, 8, 1))
guess = answer.x0.reshape(seen.shape)
pairs = jnp.stack([seen, guess], axis=1)  # [2, 2, 11, 8, 8, 1]
show(pairs.reshape(-1, 8, 8, 1), len(shown), names=[f"t = {grid50.t[k]:.1f}" for k in shown])


def distance(x):
    """From the final images, root mean square per pixel."""
    return jnp.sqrt(jnp.mean((x - final) ** 2))


half = len(shown) // 2
print(f"t = 0.5: x_t is {distance(seen[:, half]):.2f} from the final images, the guess {distance(guess[:, half]):.2f}")
if not FAST:
    assert distance(guess[:, half]) < 0.5 * distance(seen[:, half])
    assert distance(guess[:, half]) < distance(guess[:, 0])

# %% [markdown]
# ## 7. DDIM against DDPM
#
# The same model serves both samplers. Three facts to check:
#
# 1. The same key gives the same image, whatever the batch around it: each example has its own random numbers.
# 2. With DDIM the start decides everything, and the key given to `sample` changes nothing. With DDPM it does.
# 3. With few steps DDPM loses much of the variety, DDIM less.

# %%
draw = partial(jaxdiff.generate, model, trained)

options = {"sampler": samplers.DDPM(), "levels": grid50}
alone = draw(jax.random.key(4), (1, 8, 8, 1), cond={"label": jnp.array([5])}, **options)
among = draw(jax.random.key(4), (10, 8, 8, 1), cond={"label": jnp.array([5, 0, 1, 2, 3, 4, 6, 7, 8, 9])}, **options)
np.testing.assert_allclose(alone[0], among[0], atol=1e-3)
print(f"1. the same image alone and in a batch: largest difference {jnp.abs(alone[0] - among[0]).max():.0e}")

denoise = model.denoiser(trained)
start = jaxdiff.prior_sample(process, jax.random.key(5), (10, 8, 8, 1))
ten = {"label": jnp.arange(10)}
print("2. the same start, another key:")
for sampler in (samplers.DDIM(), samplers.DDPM()):
    one, two = (jaxdiff.sample(denoise, sampler, grid50, start, jax.random.key(k), cond=ten)[0] for k in (0, 1))
    change = jnp.abs(one - two).max()
    print(f"   {sampler}: largest difference {change:.2f}")
    assert (change == 0) == isinstance(sampler, samplers.DDIM)

# %%
few = min(NUM, 100)
cond = {"label": jnp.arange(few) % 10}
budgets = (5, 50)
kinds = {"DDIM": samplers.DDIM(), "DDPM": samplers.DDPM()}
varieties = {}
fig, axes = plt.subplots(len(budgets), 2, figsize=(8, 1.15 * len(budgets)), layout="constrained")
print(f"3. variety of the training images {variety(flat, train_set.labels):.3f}")
for row, steps in zip(axes, budgets, strict=True):
    for ax, (name, sampler) in zip(row, kinds.items(), strict=True):
        x = draw(jax.random.key(6), (few, 8, 8, 1), sampler=sampler, levels=grids.uniform(process, steps), cond=cond)
        varieties[name, steps] = variety(x, cond["label"])
        print(f"   {name}, {steps:2d} steps: variety {varieties[name, steps]:.3f}")
        show(x[:20], 10, f"{name}, {steps} steps", ax)
if not FAST:
    assert varieties["DDPM", 5] < varieties["DDIM", 5]
    assert varieties["DDPM", 5] < varieties["DDPM", 50]

# %% [markdown]
# ## 8. Where to go next
#
# - Change one part and run again: `processes.ddpm_cosine()`, `prediction.V`, `objectives.MinSNR()`, another guidance
#   scale, `samplers.DDIM(eta=0.5)`.
# - Processes in continuous time: `processes.vp_sde()`, `processes.edm()`, `processes.rectified_flow()`. They have no
#   table, so `time_input` must be another, such as `jaxdiff.model.LogSNR()`.
# - Your own images: `data.make("image_folder", path=...)`.
# - The same model with checkpoints and logging, from the command line:
#   `jaxdiff train --config configs/digits.py --workdir runs/digits`, then
#   `jaxdiff sample --workdir runs/digits --num 100 --out runs/digits/samples`.
# - The docstrings hold the derivations and the papers: `help(jaxdiff.samplers.ddim)`, `help(jaxdiff.process)`.
