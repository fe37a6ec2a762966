import subprocess
import sys


def test_options_are_read_before_torch():
    code = "import sys, limbeck.data.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
