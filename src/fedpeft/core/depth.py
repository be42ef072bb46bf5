"""How a model that may end early calls what belongs to a depth, for those who give clients one."""

LIMIT = "depth_limit"
"""The buffer with the number of blocks that are computed; those after them are passed over."""
OWN = "*exit_layers.{}.*"
"""The names of what is learned beside a block, by the block's number from 0."""
