"""What a run will take, in words."""

from limbeck.recipes.look.forecast import bytes_said


def test_bytes_in_words():
    assert [*map(bytes_said, (10, 2048, 3 * 2**20, 1.5 * 2**30))] == [
        "10 B", "2 KiB", "3 MiB", "1.5 GiB",
    ]  # fmt: skip
