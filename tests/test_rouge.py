"""ROUGE by hand."""

import pytest

from fedpeft.results.rouge import mean_rouge, rouge

SAT, WAS = "The cat sat on the mat.", "the cat was on the mat"


def test_five_of_six_words_and_three_of_five_pairs_are_in_common() -> None:
    found = rouge(SAT, WAS)
    assert found == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})


def test_a_word_counts_as_often_as_both_have_it_and_order_counts_in_the_subsequence() -> None:
    """Of "a a b" and "b a": one a and one b; the longest subsequence is one word."""
    found = rouge("a a b", "b a")
    assert found == pytest.approx({"rouge1": 2 * 2 / 5, "rouge2": 0.0, "rougeL": 2 * 1 / 5})


def test_the_longest_subsequence_has_gaps() -> None:
    """Lin (2004), section 3: "police killed the gunman" against "the gunman kill police" and
    "police kill the gunman", of which 2 and 3 words are in order."""
    truth = "police killed the gunman"
    assert rouge("the gunman kill police", truth)["rougeL"] == pytest.approx(0.5)
    assert rouge("police kill the gunman", truth)["rougeL"] == pytest.approx(0.75)


def test_other_scripts_have_words_and_nothing_has_none() -> None:
    assert rouge("Ёж спит", "ёж не спит")["rouge1"] == pytest.approx(4 / 5)
    assert rouge("", "a") == rouge("...", "a") == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert mean_rouge([]) == {}
    assert mean_rouge([("a", "a"), ("b", "a")])["rougeL"] == 0.5
