"""What is given away besides the loss of an expert: router rows, an attribution, and what is left behind."""
