"""Images and annotations, and every change of frame between them and the detector."""
