"""The operators in Triton, one file each, for GPUs without a compiled extension.

A file is imported when its operator is first called. The functions take the arguments of the registered schemas and
return what `rmcla_fast.reference` returns. They do not check the values of labels, since that would stall a GPU: a
label outside [0, C) makes its row NaN.
"""
