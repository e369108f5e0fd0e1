"""What a real Chromium makes of a page: where each element is drawn, whether its text fits, and what ran that should not."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nereid_client.browser import command, find_browser

_HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;width:%WIDTH%px;height:20000px"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("frame");
window.ran = 0;
frame.onload = async () => {
  const page = frame.contentDocument;
  page.body.getBoundingClientRect();
  await page.fonts.ready;
  const rect = box => ({x: box.x, y: box.y, width: box.width, height: box.height});
  const elements = {};
  for (const element of page.querySelectorAll("[id]")) {
    const lines = [];
    const texts = page.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
      if (node.parentElement !== element && node.parentElement.tagName !== "LI") continue;
      const text = node.nodeValue;
      for (let at = 0; at < text.length; ) {
        const end = text.indexOf("\\n", at) < 0 ? text.length : text.indexOf("\\n", at);
        const range = page.createRange();
        range.setStart(node, at);
        range.setEnd(node, end);
        if (text.slice(at, end).trim()) lines.push({text: text.slice(at, end), ...rect(range.getBoundingClientRect())});
        at = end + 1;
      }
    }
    elements[element.id] = {
      ...rect(element.getBoundingClientRect()), tag: element.tagName.toLowerCase(), lines,
      overflows: element.scrollWidth > element.clientWidth || element.scrollHeight > element.clientHeight,
    };
  }
  const fonts = [...page.fonts].map(font => font.status);
  const all = [...page.querySelectorAll("*")];
  const handlers = all.flatMap(element => [...element.attributes]).filter(attribute => attribute.name.startsWith("on")).length;
  const found = {
    elements, fonts, handlers, ran: window.ran, scripts: page.scripts.length,
    tags: [...new Set(all.map(element => element.tagName.toLowerCase()))],
    style: frame.contentWindow.getComputedStyle(page.querySelector("main")).position,
    pictures: [...page.images].map(image => image.complete && image.naturalWidth > 0),
  };
  document.getElementById("found").textContent = "FOUND " + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + " END";
};
frame.srcdoc = %PAGE%;
</script>
"""


def browser() -> str:
    """Chromium's path; skips where there is none."""
    found = find_browser()
    if found is None:
        pytest.skip(
            "there is no Chromium on this machine (Debian: apt-get install chromium), so pages are not drawn in a browser"
        )
    return found


def drawn(page: str, width: int, folder: Path) -> Mapping[str, Any]:
    """Elements by id with their rectangles in CSS pixels and lines of text, and what was seen of fonts, pictures, scripts."""
    quoted = json.dumps(page).replace("</", "<\\/").replace("<!--", "<\\!--")
    (folder / "harness.html").write_text(_HARNESS.replace("%WIDTH%", str(width)).replace("%PAGE%", quoted), encoding="utf-8")
    run = [*command(browser(), folder / "profile"), f"--window-size={width},1000", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*run, (folder / "harness.html").as_uri()], capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"FOUND (\S+) END", done.stdout)
    assert found is not None, done.stderr[-2000:]
    made: Mapping[str, Any] = json.loads(base64.b64decode(found[1]))
    return made
