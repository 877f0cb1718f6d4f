"""Operations chosen once before the model is built; each has a PyTorch reference."""
