"""Measuring what a merged model is worth."""
