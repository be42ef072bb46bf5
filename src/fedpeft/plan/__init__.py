"""Plans: their keys, tables, phases and checks."""
