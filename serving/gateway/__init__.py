"""The gateway: keys, limits, OpenAI's interface over HTTP, and the engines behind it."""
