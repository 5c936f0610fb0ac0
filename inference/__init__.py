"""Running a merged model: loading it, choosing experts at run time, generating text."""
