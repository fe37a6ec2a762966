"""How much of their space features use: numbers that need no label."""

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_PAIRED = 4096  # images whose pairs are counted: 8 million pairs settle three digits


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of features (n, D), 1..min(n, D).

    RankMe (arXiv 2210.02885), equation 1: of a representation that has collapsed to a few
    directions it is low. Between networks of one width it goes along with linear probes; it says
    less between widths.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 d²) over pairs of features (n, D) of length 1; 0 or below.

    Equation 5 of arXiv 2005.10242 with t = 2: the lower, the more evenly they lie on the sphere; 0
    where all are one point. Of many images the first ``MOST_PAIRED``, evenly spread, are paired.
    """
    step = -(-len(features) // MOST_PAIRED)
    points = F.normalize(features[::step].double(), dim=1)
    return float(torch.pdist(points).square().mul(-2).exp().mean().log())
