"""The life of a federation: who may submit what, what is in force, who has left; on The Update Framework (TUF)."""
