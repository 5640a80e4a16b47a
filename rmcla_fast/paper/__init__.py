"""The reproduction of the tables of the paper, and the published figures to compare with."""
