"""How alike two networks are, layer by layer: minibatch CKA with the unbiased HSIC.

Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (arXiv 2010.15327), equation 3, as
MAE-Lite uses it (arXiv 2205.14443): on the tokens of all patches, without CLS. Any two networks can
be compared, of other width, depth, patch and image size: only Gram matrices between images meet.

Differs from the released code: each batch's mean is taken off the features first, which changes
nothing but rounding.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.evaluation.layers import Observer, check_finite, check_offered
from limbeck.models.encoder import Encoder
from limbeck.records import Features, Tap

FEWEST = 4  # the unbiased HSIC divides by n - 3
ROUNDING = 1e-12  # what is left of float64 where all images say the same, as a part of tr(KK)


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC of every pair of Gram matrices of two stacks: (l, n, n), (m, n, n) to (l, m).

    HSIC_1(K, L) = [tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1] / (n (n - 3)), with
    the diagonals of K and L set to zero. In float64. Raises UserError for fewer than four images.
    """
    n = first.shape[-1]
    if n < FEWEST:
        raise UserError(
            f"A batch of {n} images is too small for the unbiased estimate of similarity, which "
            f"needs {FEWEST} or more; raise the batch size or the number of images."
        )
    k, l = (_without_diagonal(grams) for grams in (first, second))  # noqa: E741
    k_rows, l_rows = k.sum(-1), l.sum(-1)  # [l, n], [m, n]
    trace = k.flatten(1) @ l.flatten(1).T
    totals = torch.outer(k_rows.sum(-1), l_rows.sum(-1)) / ((n - 1) * (n - 2))
    return (trace + totals - 2 / (n - 2) * (k_rows @ l_rows.T)) / (n * (n - 3))


def gram(features: Tensor) -> Tensor:
    """The products (n, n) of the features (n, ...) of n images, flattened, less their mean."""
    x = features.flatten(1).double()
    x = x - x.mean(dim=0)
    return x @ x.T


@dataclass(frozen=True)
class Similarity:
    """CKA of two networks' layers.

    ``cka[i][j]`` of layer i of the first and j of the second: 1 means equal up to rotation and
    scale, 0 unrelated (the unbiased estimate may fall a little below); None where a layer says the
    same of all images, which ``reasons`` then name. ``num_images`` in ``num_batches`` batches.
    """

    cka: list[list[float | None]]
    reasons: list[str]
    num_images: int
    num_batches: int

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


class MinibatchCka:
    """CKA from Gram matrices, batch by batch: the ratio of the sums over batches of

    HSIC(K, L) and sqrt(HSIC(K, K) HSIC(L, L)), never a mean of ratios.
    """

    def __init__(self) -> None:
        self.num_images = self.num_batches = 0
        self._cross: Tensor | float = 0.0
        self._own: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
        self._scales: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch: the Gram matrices (layers, n, n) of both networks for the same images."""
        if first.shape[-1] != second.shape[-1]:
            raise ValueError(f"{first.shape[-1]} and {second.shape[-1]} images in one batch.")
        self._cross = self._cross + hsic(first, second)
        self._own = tuple(
            own + torch.stack([hsic(k[None], k[None])[0, 0] for k in grams])
            for own, grams in zip(self._own, (first, second), strict=True)
        )
        n = first.shape[-1]
        self._scales = tuple(
            scale + grams.double().square().sum((-2, -1)) / (n * (n - 3))
            for scale, grams in zip(self._scales, (first, second), strict=True)
        )
        self.num_images += n
        self.num_batches += 1

    def result(self) -> Similarity:
        """The similarity so far; raises UserError before the first batch."""
        if not self.num_batches:
            raise UserError("There are no images to compare networks on; check the data folder.")
        is_flat = [own <= ROUNDING * s for own, s in zip(self._own, self._scales, strict=True)]
        a, b = (own.clamp(min=0) for own in self._own)
        cka = (self._cross / torch.outer(a, b).sqrt()).clamp(-1, 1)  # only rounding goes beyond
        cka[is_flat[0]] = torch.nan
        cka[:, is_flat[1]] = torch.nan
        reasons = [
            f"Layer {layer} of the {which} network says the same of every image (its HSIC is 0)."
            for which, flags in zip(("first", "second"), is_flat, strict=True)
            for layer in flags.nonzero().flatten().tolist()
        ]
        values = [[None if x != x else x for x in row] for row in cka.tolist()]
        return Similarity(values, reasons, self.num_images, self.num_batches)


def layer_taps(encoder: Encoder) -> tuple[Tap, ...]:
    """The layers that are compared: what each block's attention reads, then the output.

    Layer k is the normed input of block k (of a block without attention its input), so what k
    blocks have made; layer ``depth`` the output.
    """
    inputs = (
        Tap("attention_input" if num_heads else "block_input", block)
        for block, num_heads in enumerate(encoder.facts.num_heads)
    )
    return (*inputs, Tap("output"))


class LayerGrams(Observer):
    """Collects an encoder's layers over one batch, and gives their Gram matrices.

    ``is_pooled``: of the mean patch token of each image, instead of all patches one by one.
    """

    def __init__(self, encoder: Encoder, *, is_pooled: bool = False) -> None:
        self.taps = layer_taps(encoder)
        check_offered(encoder, self.taps, "Similarity of layers")
        self.is_pooled = is_pooled
        self._parts: dict[Tap, list[Tensor]] = {tap: [] for tap in self.taps}

    def see(self, features: Features) -> None:
        """Keep the patch tokens of these images until ``take``."""
        for tap in self.taps:
            if tap in features.taps:
                patches = features.taps[tap][:, features.num_prefix_tokens :]  # [B, L, D]
                self._parts[tap].append(patches.mean(1) if self.is_pooled else patches.clone())

    def take(self) -> Tensor:
        """The Gram matrices (layers, n, n), float64 on the CPU; the next batch starts empty."""
        grams = torch.stack([gram(torch.cat(self._parts.pop(tap))).cpu() for tap in self.taps])
        self._parts = {tap: [] for tap in self.taps}
        check_finite(grams, "similarity of the layers")
        return grams


def _without_diagonal(grams: Tensor) -> Tensor:
    return grams.double() - torch.diag_embed(grams.double().diagonal(dim1=-2, dim2=-1))
