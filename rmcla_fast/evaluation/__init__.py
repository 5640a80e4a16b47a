"""Runs judged: their results, tables and pictures, one run or several side by side."""
