import json

import torch

from pipeline.masks.results import box_results, mask_results


def test_results_are_plain_values_in_pixels_with_coco_ids() -> None:
    boxes = box_results(5, torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([0.5]), torch.tensor([1]), [3, 90])
    assert boxes == [{"image_id": 5, "category_id": 90, "score": 0.5, "bbox": [1.0, 2.0, 3.0, 6.0]}]
    (mask,) = mask_results(boxes, torch.tensor([0.25]), [b"abc"], (10, 20))
    assert mask == {**boxes[0], "score": 0.25, "segmentation": {"size": [10, 20], "counts": "abc"}}
    json.dumps(mask)
