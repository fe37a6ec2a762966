import subprocess
import sys

import pytest

from limbeck.data.options import TargetsOptions
from limbeck.errors import UserError


def test_options_are_read_before_torch():
    code = "import sys, limbeck.data.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_cache_is_for_a_store_at_an_address():
    assert TargetsOptions(source="s3://bucket/store", cache="/big").cache == "/big"
    for source in (None, "folder"):
        with pytest.raises(UserError, match=r"targets.cache is for a store at an address such as"):
            TargetsOptions(source=source, cache="/big")
