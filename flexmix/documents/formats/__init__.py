"""The forms in which documents come, a line each; a file is read by the first one that recognises its content."""

from __future__ import annotations

from flexmix.documents.formats import arrow, csv_table, json_lines, json_records, parquet, plain_text
from flexmix.documents.formats.format import Format

FORMATS: tuple[Format, ...] = (
    parquet.FORMAT,
    arrow.FORMAT,
    json_lines.FORMAT,
    json_records.FORMAT,
    csv_table.FORMAT,
    plain_text.FORMAT,  # what nothing else is
)
BY_NAME = {form.name: form for form in FORMATS}
