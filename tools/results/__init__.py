"""Results of studies: one CSV file a study in docs/results, and an archive of the raw cells."""
