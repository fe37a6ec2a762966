"""What every training is made of, whatever it trains."""
