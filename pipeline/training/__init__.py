"""Stage 2: detections matched to ground truth, losses at sampled points, checkpoints."""
