"""Strangers' experts on public text before a merge, and the policy that refuses them."""
