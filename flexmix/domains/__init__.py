"""What is known of a domain: moments, embeddings, and public documents that look like it."""
