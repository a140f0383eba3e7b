"""How good predictions are: arrays in, numbers out. Nothing here knows of models or data sets."""
