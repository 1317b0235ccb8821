"""Writes records: one run, all runs of a study, the lock between processes, papermill, the bench."""
