"""Every kind of finding, which the type checker holds the code to, is explained where a user looks for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from qcthreads.monitoring.statistics import FindingKind

DOCS = Path(__file__).parents[2] / "docs"
KINDS = sorted(kind for kinds in get_args(FindingKind) for kind in get_args(kinds))


def test_every_kind_has_a_section_that_leads_to_a_cure() -> None:
    text = (DOCS / "how-to/why-slow.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^##+ `([\w-]+)`: ", text, re.MULTILINE)) == KINDS


def test_every_kind_is_in_the_reference() -> None:
    text = (DOCS / "reference/monitoring.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| kind \| when \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", "".join(tables), re.MULTILINE)) == KINDS
