"""Do generated digits look like what was asked for? An SVC, trained on real digits alone, names them.

    jaxdiff sample --workdir runs/digits --num 500 --out runs/digits/judged
    python -m benchmarks.digits_accuracy runs/digits/judged.npz

The classifier never sees a sample and knows nothing of the diffusion model. Beside its score on the samples stand its
score on real digits it was not trained on (what a perfect generator would get), and how far samples are from the
nearest training image, against how far held-out real digits are: much nearer would be copying.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

# configs/digits.py trains on the first 90 %.
_TRAINED = 1617


def nearest(images: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of others, root mean square per pixel, in grey levels of 0..16."""
    squared = ((images[:, None] - among[None]) ** 2).mean(-1)
    return np.sqrt(squared.min(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="the NPZ that 'jaxdiff sample' wrote")
    samples = np.load(parser.parse_args().file)
    images = samples["images"].reshape(len(samples["images"]), -1) / 255 * 16
    real = load_digits()
    judge = SVC(gamma="scale").fit(real.data, real.target)
    right = judge.predict(images) == samples["labels"]
    held_out = SVC(gamma="scale").fit(real.data[:_TRAINED], real.target[:_TRAINED])
    print(f"samples named as asked for: {right.sum()} of {len(right)} ({right.mean():.1%})")
    print(f"real held-out digits named right: {held_out.score(real.data[_TRAINED:], real.target[_TRAINED:]):.1%}")
    ours = nearest(images, real.data[:_TRAINED])
    theirs = nearest(real.data[_TRAINED:], real.data[:_TRAINED])
    print(
        f"distance to the nearest training image: ours {np.median(ours):.2f}, held-out digits {np.median(theirs):.2f}"
    )
    print(f"exact copies among the samples: {(ours < 0.1).sum()}")


if __name__ == "__main__":
    main()
