"""Measurements: peers side by side in one run, perf_analyzer, plots. Every figure in the documents is printed here."""
