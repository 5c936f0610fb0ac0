"""Serving a merged model to many: each request uses the experts that its key is entitled to, and no others."""
