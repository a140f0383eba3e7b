"""Classification of whole images of any size."""
