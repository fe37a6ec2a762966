"""ADE20K's folders, images/ beside annotations/, with 0 for no class and 1 for the first."""

import re
from dataclasses import replace

from limbeck.data.scenes.folders import find_folders
from limbeck.data.scenes.layout import Found, Place

NAME = re.compile(r"(^|/)ADE_(train|val|test)_\d{8}\.jpg$")


def find_ade20k(place: Place) -> Found | None:
    """The images called ADE_train_00000001.jpg and so on; all where the layout was asked for."""
    is_asked = place.options.layout == "ade20k"
    if not is_asked and not any(NAME.search(name) for name in place.names):
        return None
    found = find_folders(place)
    return found and replace(found, layout="ADE20K (0 is no class)", has_background=False)
