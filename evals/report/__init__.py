"""Results as one HTML page with tables and pictures."""
