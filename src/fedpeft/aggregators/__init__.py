"""How many updates become one."""
