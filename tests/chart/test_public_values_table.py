"""The table of the documents has every values file of the public chart that the tests take through helm."""

from __future__ import annotations

import re

from cluster import values_table


def test_the_table_has_every_values_file_in_both_modes_and_nothing_else() -> None:
    listed = re.findall(r"^\| (.+?) \| `(\w+)` \| ", values_table.TABLE.read_text(), re.MULTILINE)
    assert listed == [(name, mode) for name in values_table.examples() for mode in values_table.MODES]


def test_the_table_is_the_page_that_the_script_writes_from_its_rows() -> None:
    rows = {name: values_table.documented(name) for name in values_table.examples()}
    assert values_table.TABLE.read_text() == values_table.table(rows)
