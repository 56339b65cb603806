"""HTML pages as tests read them: parsed, and shown by a browser where there is one."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")


class Page(HTMLParser):
    """Start tags with their attributes, the text of every element of a table, and the text of headings."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.cells, self.headings, self._open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "h3"):
            self._open.append((tag, []))

    def handle_data(self, data):
        for _, text in self._open:
            text.append(data)

    def handle_endtag(self, tag):
        if self._open and self._open[-1][0] == tag:
            text = "".join(self._open.pop()[1]).strip()
            (self.headings if tag == "h3" else self.cells).append(text)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def browse(html, probe, folder):
    """What a browser makes of a page: under its own policy, and with `probe`, a script, in it. It must not complain."""
    # The page forbids foreign scripts: the probe goes into a copy that permits them.
    loose = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", html)
    made = []
    for name, content in (("strict.html", html), ("probed.html", loose.replace("</body>", probe + "</body>"))):
        (folder / name).write_text(content, encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", *QUIET]
        command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900", "--virtual-time-budget=4000"]
        command += ["--dump-dom", (folder / name).as_uri()]
        environment = {**os.environ, "HOME": str(folder)}
        seen = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert "CONSOLE" not in seen.stderr, seen.stderr
        made.append(seen.stdout)
    return made
