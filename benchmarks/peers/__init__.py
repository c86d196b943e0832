"""Other stores on pgvector, each in an environment of its own, asked what ours is asked."""
