"""ImageNet's classes: as many as there are, and as its classifiers sort them."""

from limbeck.models.imagenet import NUM_IMAGENET, imagenet_ids


def test_they_are_sorted_and_complete():
    ids = imagenet_ids()
    assert len(set(ids)) == NUM_IMAGENET == 1000
    assert ids == sorted(ids) and ids[0] == "n01440764" and ids[-1] == "n15075141"
