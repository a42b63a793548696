"""Frozen detectors behind one protocol: images in, encoder maps and chosen detections out."""
