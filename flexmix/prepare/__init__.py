"""From an owner's documents to token shards: cleaning, near duplicates, statistics, on one machine or many."""
