"""Images and annotated image sets, read into one convention: upright RGB arrays, half-open pixel boxes, labels 1..K."""
