"""The tables of the pages about claims, drawn from the results of studies."""
