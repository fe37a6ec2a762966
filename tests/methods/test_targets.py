"""Stored answers in the place of a teacher."""

import pytest

from limbeck.errors import UserError
from limbeck.methods.targets import targets_class


def test_a_kind_of_a_later_version_is_named():
    with pytest.raises(UserError, match="'sounds'"):
        targets_class("sounds")
