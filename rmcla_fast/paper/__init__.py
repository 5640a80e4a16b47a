"""Reproduce the tables of the paper, and compare the results with the published figures."""
