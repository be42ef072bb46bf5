"""What all parts share: conversation, views, facts, types, tensors, seeds."""
