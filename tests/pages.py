"""Run directories as a report finds them, and the page read again."""

import html.parser
import json

import yaml

from gacd.cli import main

HOSTILE = """<script>alert(1)</script>"''><img src=x onerror=alert(2)>{{ 7*7 }}--> $x^"""


def entry(attack, accuracy, eps=None, n=200, data="cifar10", sha256="a", **more):
    threat = dict(norm="Linf", eps=eps, step_size="2/255") if eps else {}
    row = dict(weights="best", sha256=sha256, data=data, n=n, attack=attack, accuracy=accuracy, seed=0)
    return row | threat | dict(commit="abc123", device="a CPU", versions={"torch": "2.13.0"}) | more


def make(root, name, rows=None, *, options=None, metrics=None):
    run = root / name
    run.mkdir(parents=True)
    options = dict(method="pgdat", model="resnet8", data="cifar10", eps="8/255", epochs=2) | (options or {})
    (run / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    if rows is not None:
        content = dict(format=1, model="resnet8", parameters=12345, results=rows)
        (run / "results.json").write_text(json.dumps(content))
    if metrics is not None:
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n{torn")
    return run


def page(root, *options):
    assert main(["report", str(root), *options]) == 0
    text = (root / "report.html").read_text()
    document = Document()
    document.feed(text)
    return text, document


class Document(html.parser.HTMLParser):
    """Collects elements, and checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data.strip()
