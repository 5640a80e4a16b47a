"""The evaluation of trained runs: results, tables and pictures of one run, or of several runs next to each other."""
