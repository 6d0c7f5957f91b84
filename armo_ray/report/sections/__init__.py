"""The sections of the page, each from the numbers of the report to HTML."""
