"""The operators in Triton, one file each, for GPUs without a compiled extension; imported when one is first called.

The functions take the registered schemas' arguments and return what `rmcla_fast.reference` returns. Label values are
not checked: reading them would stall a GPU, so a label that is no class makes its row NaN.
"""
