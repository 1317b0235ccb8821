"""Reads records: published figures, statistics, tables, figures, sentences and the page. Needs no torch."""
