"""The science: COCO image -> frozen detector -> cached features -> mask head -> COCO AP."""
