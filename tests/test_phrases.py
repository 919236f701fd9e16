"""evals/overlap/ngrams.py: words however they are typeset, and the phrases that a text holds."""

import pytest

from evals.overlap.ngrams import Alphabet, blanked, ngrams_of, words_of

WORDS = ["which", "of", "these", "isn", "t", "the", "attacker", "s", "goal"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  WHICH of\n\tthese   isn't\u00a0the attacker's goal?  ", WORDS),
        ("Which of these isn’t the “attacker‘s” goal…", WORDS),
        (
            "<p class='q'>Which <b>of</b> these<br/>isn&#39;t the&nbsp;attacker&rsquo;s <a href=\"x?a=1\">goal</a></p>",
            WORDS,
        ),
        ("**Which** of `these` _isn't_ the [attacker's] goal", WORDS),
        ("Which-of-these isn't the at\u00adtack\u200ber's goal\ufeff", WORDS),
        ("&lt;i&gt;Ｗｈｉｃｈ&lt;/i&gt; of these isn't the attacker's goal", WORDS),
        ("T1566.001: CWE-79", ["t1566", "001", "cwe", "79"]),
        ("Strasse STRASSE Straße", ["strasse"] * 3),
        ("if x <b or y and c> then", ["if", "x", "b", "or", "y", "and", "c", "then"]),
        ("1 < 2 && 3 > 2 ?! — … «»", ["1", "2", "3", "2"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_a_phrase_is_a_substring_of_whole_words():
    alphabet = Alphabet()
    phrase = alphabet.learn(["no", "sql"])
    assert len(phrase) == 2
    assert phrase in alphabet.spell(["there", "is", "no", "sql", "here"])
    assert phrase not in alphabet.spell(["there", "is", "nosql", "here", "or", "no", "such", "sql"])
    assert blanked(alphabet.spell(["a", "no", "sql", "b"]), phrase) == "\0" * 4
    assert (ngrams_of("abcd", 3), ngrams_of("ab", 3)) == (["abc", "bcd"], [])
