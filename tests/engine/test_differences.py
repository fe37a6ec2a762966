"""In what two runs differ."""

from limbeck.engine.differences import MAY_CHANGE, MAY_DIFFER, differences


def test_what_differs_is_named_with_both_values():
    there = {"seed": 0, "crop": (0.2, 1.0), "train": {"epochs": 3, "device": "cpu"}}
    here = {"crop": [0.2, 1.0], "train": {"epochs": 5, "device": "cuda"}, "name": "café"}
    assert differences(there, here, MAY_CHANGE) == [
        ("train.epochs", "3", "5"),
        ("name", "absent", '"café"'),
        ("seed", "0", "absent"),
    ]
    assert differences(there, there) == []


def test_what_may_differ_may_in_a_section_of_its_own():
    one, other = ({"tune": {"train": {"save_every": n}}, "out": "ab"[n]} for n in (0, 1))
    assert differences(one, other, MAY_CHANGE) == []
    assert [name for name, *_ in differences(one, other, MAY_DIFFER)] == [
        "tune.train.save_every",
        "out",
    ]


def test_names_of_an_old_disk_can_be_compared():
    one, other = {"root": "caf\udce9"}, {"root": "cafe"}
    assert differences(one, other, what="fingerprint of ") == [
        ("fingerprint of root", r'"caf\udce9"', '"cafe"')
    ]


def test_an_option_that_earlier_versions_had_not_is_what_they_did():
    there = {"optim": {"min_lr": 0.0}}
    here = {"optim": {"min_lr": 0.0, "schedule": "cosine", "drop_at": ()}}
    assert differences(there, here) == differences({"tune": there}, {"tune": here}) == []
    other = {"optim": {"min_lr": 0.0, "schedule": "poly"}}
    assert differences(there, other) == [("optim.schedule", '"cosine"', '"poly"')]
