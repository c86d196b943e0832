"""How words are ranked, in one context and over a tenant: docs/adr/0015.

The numbers are text, since they become part of statements.
"""

from typing import Final, LiteralString

# So many of the best by PostgreSQL's rank are judged by how rare their words are.
SHORTLIST: Final[LiteralString] = "200"
# What fewer messages than this have is among them, whatever its rank: an identifier must not be
# lost among what shares the rest of the query. Each word is looked up for that, up to a number.
RARE_ROWS_MAX: Final[LiteralString] = "50"
RARE_TERMS_MAX: Final[LiteralString] = "32"

_LENGTH_NORM: Final[LiteralString] = "(1 + ln(1 + @words / 100.0::double precision))"


def by_length(rank: LiteralString, words: LiteralString) -> LiteralString:
    """Return a rank that is less for texts of many different words."""
    return rank + "\n        / " + _LENGTH_NORM.replace("@words", words)


def rank_of(text_search: LiteralString, query: LiteralString) -> LiteralString:
    """Return PostgreSQL's rank of a text for a query, less for texts of many different words."""
    return by_length("ts_rank(" + text_search + ", " + query + ")", "length(" + text_search + ")")
