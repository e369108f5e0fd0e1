"""Matrices stored in about 4 bits a weight and multiplied in 8: how they are rounded, stored and read; knows no architecture."""
