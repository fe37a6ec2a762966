"""ImageNet's 1,000 classes, in the order of all its classifiers: that of WordNet's ids."""

from functools import cache

NUM_IMAGENET = 1000


@cache
def imagenet_ids() -> list[str]:
    """WordNet's ids, such as n01440764, by class."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())
