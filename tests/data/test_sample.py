"""A sample of images: by chance or by class, whatever the order of the listing."""

import pytest

from limbeck.data.sample import draw_sample, num_classes_of
from limbeck.data.source import Source, Subset
from limbeck.errors import UserError


class Listing(Source):
    """Sorted by class, as folders are."""

    def __init__(self, counts, is_labelled=True):
        self.labels = [label for label, count in enumerate(counts) for _ in range(count)]
        self.classes = tuple(map(str, range(len(counts)))) if is_labelled else ()

    def __len__(self):
        return len(self.labels)

    def key(self, index):
        return f"{self.labels[index]}/{index}.png"

    def label(self, index):
        return self.labels[index] if self.classes else None

    def read(self, index):
        raise NotImplementedError


def labels_of(source):
    return [source.label(index) for index in range(len(source))]


def keys_of(source):
    return [source.key(index) for index in range(len(source))]


SKEWED = Listing([200, 20, 5, 1])


def test_stratified_is_as_many_of_each_class_as_there_are():
    counts = [labels_of(draw_sample(SKEWED, 32, seed=0)).count(label) for label in range(4)]
    assert counts == [13, 13, 5, 1]
    few = draw_sample(SKEWED, 4, "stratified", seed=0)
    assert sorted(labels_of(few)) == [0, 1, 2, 3] and num_classes_of(few) == 4


def test_random_takes_every_image_with_the_same_chance():
    total = [0, 0, 0, 0]
    for seed in range(50):
        for label in labels_of(draw_sample(SKEWED, 32, "random", seed=seed)):
            total[label] += 1
    assert 0.8 < total[0] / (50 * 32 * 200 / 226) < 1.2
    assert 0.6 < total[1] / (50 * 32 * 20 / 226) < 1.4


@pytest.mark.parametrize("how", ["random", "stratified"])
def test_the_order_of_the_listing_has_no_influence(how):
    backwards = Subset(SKEWED, list(reversed(range(len(SKEWED)))))
    drawn = keys_of(draw_sample(SKEWED, 32, how, seed=3))
    assert keys_of(draw_sample(backwards, 32, how, seed=3)) == drawn
    assert keys_of(draw_sample(SKEWED, 32, how, seed=4)) != drawn
    assert drawn != sorted(drawn)  # nor are classes together in a batch
    assert len(set(drawn)) == 32


def test_never_the_first_of_a_listing():
    even = Listing([100] * 10)
    assert num_classes_of(draw_sample(even, 100, "random", seed=0)) == 10
    assert keys_of(draw_sample(even, 100, "random", seed=0)) != keys_of(even)[:100]


def test_all_where_there_are_no_more():
    sample = draw_sample(SKEWED, 1000, seed=0)
    assert sorted(keys_of(sample)) == sorted(keys_of(SKEWED))


def test_without_labels():
    bare = Listing([50], is_labelled=False)
    assert len(draw_sample(bare, 10, seed=0)) == 10
    assert num_classes_of(bare) == 0
    with pytest.raises(UserError, match="can't be drawn by class; use --sampling random"):
        draw_sample(bare, 10, "stratified", seed=0)
