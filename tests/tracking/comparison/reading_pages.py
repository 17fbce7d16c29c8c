"""What stands in a page, read back by other means than its own scripts."""

import json
import re
import struct
from base64 import b64decode
from html.parser import HTMLParser


def data_of(page):
    """The JSON of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def numbers(data, place):
    raw = b64decode(data["arrays"][place])
    return list(struct.unpack(f"<{len(raw) // 8}d", raw))


def curves(data, title):
    """Name of each run → positions and values, of the figure of that title."""
    (figure,) = [one for one in data["figures"] if one["title"] == title]
    return {data["runs"][run]["name"]: (numbers(data, x), numbers(data, y)) for run, x, y in figure["curves"]}


class Elements(HTMLParser):
    """Every tag with its attributes, and all text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while tag in self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]
