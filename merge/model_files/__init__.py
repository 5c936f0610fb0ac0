"""Model folders of other people: which files hold the weights, which settings may stand, which files go along."""
