"""Which methods work on which families of models: docs/models.md."""
