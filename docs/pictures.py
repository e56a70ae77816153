"""Makes the pictures of README and of the pages anew: ``python docs/pictures.py [NAME ...]``.

Most are what the code on the pages writes. The report is a page, and its picture a screenshot
(chromium, chromedriver and selenium).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "tutorials" / "images"
SENTENCE = "has a lot of the virtues of eastwood at his best."
sys.path.insert(0, str(ROOT))


def command(*arguments: str) -> None:
    """Runs the command line of this checkout."""
    subprocess.run([sys.executable, "-m", "captum_lrp_tx", *arguments], cwd=ROOT, check=True)


def of_page(page: str, *names: str) -> Callable[[Path], None]:
    """Pictures that the Python code on a how-to page writes."""

    def make(folder: Path) -> None:
        text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        paths = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        subprocess.run([sys.executable, "-c", paths + code], cwd=folder, check=True)
        for name in names:
            shutil.copy(folder / name, IMAGES)

    return make


def report(folder: Path) -> None:
    """A screenshot of the report, with the numbers of a word that the mouse is over."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    page = folder / "report.html"
    methods = "LRP,LRP(AH+LN),GI,IG,GAE,Rollout,Random"
    title = "Seven methods on sentences of the package"
    command("report", "--methods", methods, "--title", title, "--html", str(page))
    options: Any = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1400,1040"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(page.as_uri())
        browser.implicitly_wait(20)
        browser.find_element(By.CSS_SELECTOR, "[data-ex='5']").click()
        word = browser.find_elements(By.CSS_SELECTOR, "[data-method='LRP'] > *")[4]
        webdriver.ActionChains(browser).move_to_element(word).perform()
        browser.save_screenshot(str(IMAGES / "report.png"))
    finally:
        browser.quit()


PICTURES: dict[str, Callable[[Path], None]] = {
    "sentence": lambda _: command(SENTENCE, "--png", str(IMAGES / "sentence.png")),
    "methods": lambda _: command("compare", SENTENCE, "--png", str(IMAGES / "methods.png")),
    "pairs": of_page("pairs.md", "pairs.png", "image-pairs.png"),
    "parts": of_page("parts.md", "parts.png", "head.png", "effects.png"),
    "report": report,
}


def main(names: list[str]) -> None:
    """Makes those of the names, or all."""
    for name in names or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
