import torch

from pipeline.detectors.base import top_detections


def test_best_pairs_of_query_and_class_come_first() -> None:
    probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]])
    scores, queries, labels = top_detections(probs, 4)
    assert scores.tolist() == [[*torch.tensor([0.9, 0.8, 0.7, 0.3]).tolist()]]
    assert queries.tolist() == [[0, 1, 2, 2]]
    assert labels.tolist() == [[1, 0, 1, 0]]


def test_equal_scores_keep_the_order_of_query_and_class() -> None:
    _, queries, labels = top_detections(torch.full((2, 5, 3), 0.5), 7)
    assert queries.tolist() == [[0, 0, 0, 1, 1, 1, 2]] * 2
    assert labels.tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2


def test_no_more_pairs_than_there_are() -> None:
    assert top_detections(torch.rand(1, 2, 3), 100)[0].shape == (1, 6)


def test_without_duplicates_a_query_keeps_its_best_class() -> None:
    probs = torch.tensor([[[0.6, 0.9], [0.8, 0.2], [0.3, 0.7]]])
    scores, queries, labels = top_detections(probs, 2, de_duplicate=True)
    assert torch.equal(scores, torch.tensor([[0.9, 0.8]]))
    assert (queries.tolist(), labels.tolist()) == ([[0, 1]], [[1, 0]])
    assert top_detections(probs, 9, de_duplicate=True)[1].tolist() == [[0, 1, 2]]
