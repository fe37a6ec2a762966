"""How far a verb is: a bar on a terminal, nothing elsewhere."""

import io

from rich.console import Console

from limbeck.recipes.run.progress import tracked


def test_a_bar_on_a_terminal_and_silence_elsewhere(capsys):
    told = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
        assert list(tracked(iter("abc"), 3, "photos", console)) == ["a", "b", "c"]
        told[is_terminal] = console.file.getvalue()
    assert "photos" in told[True] and told[False] == ""
    assert list(tracked([1, 2], 2, "photos")) == [1, 2]
    assert capsys.readouterr() == ("", "")
