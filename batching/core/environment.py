"""The environment variable of the kernels, for those who set it and need no compiler themselves."""

# The folder under which compiled kernels are kept.
CACHE_ENV = "BURRSTONE_KERNEL_CACHE"
