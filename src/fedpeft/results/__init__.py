"""What a finished run comes to: benchmarks, samples, pictures."""
