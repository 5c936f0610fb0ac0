"""From text to tokens: corpora, token shards, packing, domain statistics. Nothing in here knows a model class."""
