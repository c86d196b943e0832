"""How words are made of a text, in the database: the functions behind `text_search` and queries.

A document and a query go through the same steps, so whatever these do to one they do to the other:

1. What isn't ASCII is folded: accents off Latin and Greek letters, full-width and other
   compatibility forms to their plain ones, and scripts written without spaces cut into overlapping
   pairs of characters. ASCII, told by its length in bytes, skips this.
2. The signs that PostgreSQL's parser would read a host, a path, a tag or a signed number into
   become spaces, so that every run of letters and digits is a word; the language stems it.
3. What such signs had joined (`get_user_details`, `src/app/main.py`, `2024-01-15`) is added once
   more as one word, at each level it is joined at; so is what stands in `camelCase`, in parts.

What is made of a text depends on nothing but the text: not on the search path, which the functions
that are called from outside set for themselves, nor on any setting. So a column can be generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgcontext.functions.filling import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

# What texts are taken to be in unless a setting says otherwise at the first migration.
TEXT_LANGUAGE_DEFAULT: Final = "english"
# A tsvector holds at most 1 MiB; this many characters stay below it even when every character
# takes four bytes and every word is indexed with a position.
TEXT_SEARCH_CHARS_MAX: Final = 100_000
# The same text with pairs of characters spelled out takes three times as many; half of that fits.
TEXT_FOLDED_CHARS_MAX: Final = 150_000
TEXT_COMPOUNDS_CHARS_MAX: Final = 50_000
TEXT_COMPOUND_CHARS_MAX: Final = 256
# What of a query is searched for: more would cost more than it could tell.
TEXT_QUERY_WORDS_MAX: Final = 1_000
TEXT_PHRASES_MAX: Final = 20
TEXT_PHRASE_CHARS_MAX: Final = 1_000

# The configuration's name is the only thing that differs between two languages.
_LANGUAGE: Final = """
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_language() RETURNS regconfig
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'pg_catalog.{language}'::regconfig
"""

# Marks come off these bases only: the Cyrillic short i and the voiced kana are other letters, and
# NFC puts them together again.
_UNACCENTED: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_unaccented(content text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN normalize(regexp_replace(
    replace(replace(replace(replace(replace(replace(
        translate(normalize(content, NFD),
                  U&'\00F8\00D8\0142\0141\0111\0110\0127\0126\0131', 'oOlLdDhHi'),
        U&'\00DF', 'ss'), U&'\0153', 'oe'), U&'\00E6', 'ae'),
        U&'\1E9E', 'SS'), U&'\0152', 'OE'), U&'\00C6', 'AE'),
    '([A-Za-z\u0391-\u03A9\u03B1-\u03C9\u0415\u0435])[\u0300-\u036F]+', '\1', 'g'
), NFC)
"""

# From a run of characters ABCD the two replacements make the words AB, BC, CD and D: any piece of
# it that is two characters or longer is found as a phrase, one character by its prefix.
_FOLDED: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_folded(content text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(content) = char_length(content) THEN content ELSE
    left(regexp_replace(regexp_replace(
        {prefix}pgcontext_text_unaccented(
            left(normalize(translate(content, U&'\2116\2120\2122', '   '), NFKC), {chars})
        ),
        '([{unspaced}]+)', ' \1 ', 'g'),
        '(?<=[{unspaced}])([{unspaced}])', '\1 \1', 'g'
    ), {folded_chars}) END
"""

# First the runs that something joins, then each of them whole and at the levels within: a path's
# file, an address's sides, a qualified name's last part, a number. Signs between digits stay as
# points (1.5 is not 15), all others go: HAT-136 is HAT136. Last the humps of camelCase.
_COMPOUNDS: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_compounds(content text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $function$ BEGIN RETURN (
    SELECT concat_ws(' ',
        regexp_replace(regexp_replace(
            replace(replace(replace(
                string_agg(DISTINCT part.whole COLLATE "C", ' ')
                    FILTER (WHERE char_length(part.whole) <= {compound_chars}),
                '++', 'plusplus'), '#', 'sharp'), ',', ''),
            '(?<!\d)[{joiners}]+|[{joiners}]+(?!\d)', '', 'g'),
            '[{joiners}]+', '.', 'g'),
        string_agg(DISTINCT part.humps COLLATE "C", ' '))
    FROM (
        SELECT matched[1] AS text FROM regexp_matches(content,
            '[^\W_]+(?:(?:[:]//|[:][:]|[{joiners}]|,(?=\d\d\d(?!\d)))[^\W_]+)+'
            '|[^\W_]*(?:{humps})[^\W_]*|\m[A-Za-z](?:\+\+|#)', 'g') AS matched
    ) AS run
    CROSS JOIN LATERAL (
        SELECT CASE WHEN run.text ~ '[\W_]' THEN run.text END AS whole,
               CASE WHEN run.text ~ '{humps}' THEN translate(
                   regexp_replace(run.text,
                       '([a-z0-9])(?=[A-Z])|([A-Z])(?=[A-Z][a-z][a-z])', '\1\2 ', 'g'),
                   '{cut}', '{spaces}'
               ) END AS humps
        UNION ALL
        SELECT matched[1] AS whole, NULL::text AS humps
        FROM regexp_matches(run.text, '[^\W_]+(?:[-_.][^\W_]+)+', 'g') AS matched
        UNION ALL
        SELECT matched[1] AS whole, NULL::text AS humps
        FROM regexp_matches(run.text, '[^\W_]+(?:[-_][^\W_]+)+', 'g') AS matched
        UNION ALL
        SELECT matched[1] AS whole, NULL::text AS humps
        FROM regexp_matches(run.text, '\d+(?:[.,]\d+)+', 'g') AS matched
        UNION ALL
        SELECT matched[1] AS whole, NULL::text AS humps
        FROM regexp_matches(run.text, '\d+(?:,\d\d\d)+', 'g') AS matched
    ) AS part
); END $function$
"""

# Stemmers of other languages than English read accents: what they make of the words as written is
# added, without positions, so that a stem shared by both counts once.
_ACCENTED: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_accented(content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $function$ BEGIN RETURN CASE
    WHEN {prefix}pgcontext_text_language() = 'pg_catalog.english'::regconfig
        OR {prefix}pgcontext_text_language() = 'pg_catalog.simple'::regconfig
        OR content !~ '[\u00C0-\u024F\u1E00-\u1EFF]' THEN ''::tsvector
    ELSE array_to_tsvector(ARRAY(
        SELECT DISTINCT {prefix}pgcontext_text_unaccented(word.lexeme)
        FROM unnest(to_tsvector({prefix}pgcontext_text_language(), translate(
            regexp_replace(content, '[{unspaced}]+', ' ', 'g'),
            '{cut}', '{spaces}'
        ))) AS word
    )) END; END $function$
"""

_WORDS: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_words(content text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_tsvector({prefix}pgcontext_text_language(), translate(content, '{cut}', '{spaces}'))
"""

# The pattern tells texts that hold nothing joined, most of them, at a glance. PL/pgSQL, since it
# keeps the plans of its parts for as long as the session lasts: that a message is stored in 6
# microseconds more instead of 70. The path of names is its own, whatever the session's is.
_VECTOR: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_vector(content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    said text := left(coalesce(content, ''), {chars});
    folded text := {prefix}pgcontext_text_folded(said);
    vector tsvector := {prefix}pgcontext_text_words(folded);
BEGIN
    IF folded ~ '[^\W_][{joiners},]{1,3}[^\W_]|{humps}|[A-Za-z](?:\+\+|#)' THEN
        vector := vector || to_tsvector(
            {prefix}pgcontext_text_language(),
            left({prefix}pgcontext_text_compounds(folded), {compounds_chars})
        );
    END IF;
    IF octet_length(said) <> char_length(said) THEN
        vector := vector || {prefix}pgcontext_text_accented(left(said, {compounds_chars}));
    END IF;
    RETURN vector;
END $function$
"""

# Any of the words, by OR; a phrase in quotes has to be there. `phrases | phrases & words` matches
# what `phrases` does, and its words still count for the rank. Lexemes are quoted, so nothing in
# them is an operator. A last character of a run of pairs says nothing that the pair before didn't.
_QUERY: Final = r"""
CREATE OR REPLACE FUNCTION {prefix}pgcontext_text_query(words text) RETURNS tsquery
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN (
    WITH phrase AS (
        SELECT matched.place, {prefix}pgcontext_text_words(
            {prefix}pgcontext_text_folded(matched.parts[1])) AS vector
        FROM regexp_matches(
            translate(words, U&'\201C\201D\201E\201F\00AB\00BB', repeat('"', 6)),
            '(?:^|\s)"([^"]+)"(?=$|[\s.,;:!?)])', 'g') WITH ORDINALITY AS matched (parts, place)
        WHERE char_length(matched.parts[1]) <= {phrase_chars}
        LIMIT {phrases}
    ),
    spelled AS (
        SELECT source.place, word.lexeme, at.position,
               lag(word.lexeme) OVER (PARTITION BY source.place ORDER BY at.position) AS before
        FROM (
            SELECT 0 AS place, {prefix}pgcontext_text_vector(words) AS vector
            UNION ALL
            SELECT phrase.place, phrase.vector FROM phrase
        ) AS source
        CROSS JOIN unnest(source.vector) AS word
        LEFT JOIN LATERAL unnest(word.positions) AS at (position) ON true
    ),
    term AS (
        SELECT spelled.place, spelled.position,
               '''' || replace(replace(spelled.lexeme, '\', '\\'), '''', '''''') || ''''
               || CASE WHEN spelled.lexeme ~ '^[{unspaced}]$' THEN ':*' ELSE '' END AS text
        FROM spelled
        WHERE (spelled.lexeme ~ '^[{unspaced}]$' AND char_length(spelled.before) = 2
               AND right(spelled.before, 1) = spelled.lexeme) IS NOT TRUE
    ),
    wanted AS (
        SELECT string_agg('(' || phrases.text || ')', ' & ') AS text
        FROM (
            SELECT string_agg(coalesce('<' || linked.distance || '>', '') || linked.text, ''
                              ORDER BY linked.position) AS text
            FROM (
                SELECT term.place, term.text, term.position, term.position
                       - lag(term.position) OVER (PARTITION BY term.place ORDER BY term.position)
                       AS distance
                FROM term WHERE term.place > 0
            ) AS linked
            GROUP BY linked.place
        ) AS phrases
    ),
    anything AS (
        SELECT string_agg(first.text, ' | ' ORDER BY first.position) AS text
        FROM (
            SELECT term.text, min(term.position) AS position
            FROM term WHERE term.place = 0
            GROUP BY term.text
            ORDER BY min(term.position), term.text
            LIMIT {query_words}
        ) AS first
    )
    SELECT (CASE WHEN wanted.text IS NULL THEN anything.text
                 ELSE wanted.text || ' | ' || wanted.text || ' & (' || anything.text || ')'
            END)::tsquery
    FROM wanted CROSS JOIN anything
); END $function$
"""

_FUNCTIONS: Final = (
    _LANGUAGE,
    _UNACCENTED,
    _FOLDED,
    _COMPOUNDS,
    _ACCENTED,
    _WORDS,
    _VECTOR,
    _QUERY,
)

# Thai, Lao, Burmese, Khmer; ideographs, kana, bopomofo; Hangul, whose particles hang on the words.
_UNSPACED: Final = (
    r"\u0E01-\u0EFF\u1000-\u109F\u1780-\u17FF"
    r"\u3005-\u3007\u3041-\u312F\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF"
    r"\uA960-\uA97F\uAC00-\uD7FF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
# Signs that join words into one, and those that the parser would read something into.
_JOINERS: Final = "-_./@:+~?=&"
_CUT: Final = "-+./@<&_~:"
# Where camelCase is cut: getUser, HTTPError; not in IDs, nor in COVIDs.
_HUMPS: Final = "[a-z][A-Z]|[A-Z][A-Z][a-z][a-z]"
_VALUES: Final = {
    "unspaced": _UNSPACED,
    "joiners": _JOINERS,
    "humps": _HUMPS,
    "cut": _CUT,
    "spaces": " " * len(_CUT),
    "chars": TEXT_SEARCH_CHARS_MAX,
    "folded_chars": TEXT_FOLDED_CHARS_MAX,
    "compounds_chars": TEXT_COMPOUNDS_CHARS_MAX,
    "compound_chars": TEXT_COMPOUND_CHARS_MAX,
    "query_words": TEXT_QUERY_WORDS_MAX,
    "phrases": TEXT_PHRASES_MAX,
    "phrase_chars": TEXT_PHRASE_CHARS_MAX,
}


def language_function(language: str, prefix: str = "") -> str:
    """Return the DDL of the one function that says which language it is.

    Args:
        language: a text search configuration of PostgreSQL's own, such as `english`.
        prefix: the schema, quoted, with its point; '' leaves it to the search path.
    """
    return filled(_LANGUAGE, {"prefix": prefix, "language": language})


def text_functions(language: str, prefix: str = "") -> Iterator[str]:
    """Yield the DDL of the functions, in the order in which they need each other."""
    for function in _FUNCTIONS:
        yield filled(function, {**_VALUES, "prefix": prefix, "language": language})
