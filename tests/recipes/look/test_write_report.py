"""``report``: pages of runs, comparisons and evaluations; in a browser; what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.recipes.look.evaluate import evaluate
from limbeck.recipes.look.write_report import ReportConfig, check, report, write_report
from limbeck.recipes.study.compare import compare
from tests.recipes.look.test_evaluate import config_of
from tests.recipes.runs import snapshot
from tests.recipes.study.test_compare import config_of as comparison_of

CHROMIUM = Path("/usr/bin/chromium")


def page_of(*runs, out, **more):
    done = write_report(ReportConfig(runs=tuple(map(str, runs)), out=out, **more))
    assert report(done).startswith(f"{out} (") and done.size < 10 * 2**20
    return out.read_text()


def test_a_run(student, tmp_path):
    before = snapshot(student)
    text = page_of(student, out=tmp_path / "a.html", title="Mine")
    assert "<h1>Mine</h1>" in text and "limbeck distill: finished, linear_top1 " in text
    assert "--relation.drop-path-rate" in text or "limbeck distill --out" in text
    for part in ("What was run", "Curves and scores", "Cost", "Loss and its parts, by step"):
        assert part in text
    assert snapshot(student) == before


def test_a_run_under_way(student, tmp_path):
    run = shutil.copytree(student, tmp_path / "run")
    for name in ("student.json", "student.safetensors", "finished.json"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + '\n{"step": 9, "lo')
    (run / "skipped.jsonl").write_text('{"key": "a.png", "reason": "it is cut short"}\n')
    text = page_of(run, out=tmp_path / "a.html")
    step = max(json.loads(line)["step"] for line in lines[:3])
    assert f"under way or stopped: step {step} of 8" in text
    assert "1 files could not be used." in text and "it is cut short" in text


def test_an_evaluation(images, student, teacher, tmp_path):
    out = tmp_path / "out"
    found = evaluate(config_of(images, student, teacher=str(teacher), out=out))
    (out / "probes.png").write_bytes(b"\x89PNG")
    text = page_of(out, out=out / "report.html")
    why = found.verdicts[found.deciding].why
    assert text.index(why) < text.index("<nav") and found.paired in text
    assert "What the student takes for what (linear probe)" in text
    assert 'alt="probes, as in probes.png"' in text


def test_a_comparison_and_a_run_on_one_page(images, student, tmp_path):
    found = compare(comparison_of(images, tmp_path / "out", "masked-pixel", "untrained"))
    text = page_of(tmp_path / "out", student, out=tmp_path / "a.html")
    assert "Scores by arm, with their spread over seeds" in text
    assert "out: Comparison" in text and "run: Curves and scores" in text
    assert found.equal[0][:60] in text


def test_what_is_refused(student, tmp_path):
    def told(match, *runs, **more):
        with pytest.raises(UserError, match=match):
            check(ReportConfig(runs=tuple(map(str, runs)), **more))

    told("No folder is named")
    told("none does not exist", tmp_path / "none")
    told("is a file; name the folder", student / "student.json")
    told("is no name of a page", student, out=tmp_path / "a.txt")
    (tmp_path / "mine.html").write_text("my own page")
    told("is no page of this verb, so it stays", student, out=tmp_path / "mine.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has nothing of a run, a study, an evaluation or an ana"):
        write_report(ReportConfig(runs=(str(tmp_path / "empty"),)))
    page_of(student, out=tmp_path / "a.html")
    page_of(student, out=tmp_path / "a.html")  # its own page is written anew


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(images, student, teacher, tmp_path, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}, in which the page is tested (Debian: apt install chromium)")
    out = tmp_path / "out"
    evaluate(config_of(images, student, teacher=str(teacher), out=out))
    page_of(out, student, out=tmp_path / "a.html")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "a.html").as_uri())
        page.wait_for_selector(".chart .main-svg")
        assert asked[0].startswith("file:")
        assert all(url.startswith(("data:", "blob:")) for url in asked[1:])
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for link in page.locator("nav a").all():
            link.click()
            assert page.locator(link.get_attribute("href")).is_visible()
        page.locator("summary").first.click()
        assert page.locator("details table").first.is_visible()
        assert page.evaluate("[...document.images].every(each => each.alt)")
        found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "best-practice"]})
        worst = {each["id"]: each["nodes"][0]["html"] for each in found.response["violations"]}
        assert worst == {} and not said
        browser.close()
