"""Changes of one update before it leaves: noise, feedback of errors."""
