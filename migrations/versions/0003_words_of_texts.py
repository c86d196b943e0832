"""Make the words of texts by functions of our own, for a language that is a setting.

The text of this file is frozen: it never follows later changes of `pgcontext.schema`. The column
`text_search` is made anew, which rewrites the table and its indexes under an exclusive lock; code
written for the former schema works beside it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The configuration's name is the only thing that differs between two languages.
LANGUAGE = """
CREATE FUNCTION {schema}.pgcontext_text_language() RETURNS regconfig
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'pg_catalog.{language}'::regconfig
"""

# Marks come off these bases only: the Cyrillic short i and the voiced kana are other letters, and
# NFC puts them together again.
UNACCENTED = r"""
CREATE FUNCTION {schema}.pgcontext_text_unaccented(content text) RETURNS text
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
FOLDED = r"""
CREATE FUNCTION {schema}.pgcontext_text_folded(content text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(content) = char_length(content) THEN content ELSE
    left(regexp_replace(regexp_replace(
        {schema}.pgcontext_text_unaccented(
            left(normalize(translate(content, U&'\2116\2120\2122', '   '), NFKC), {chars})
        ),
        '([{unspaced}]+)', ' \1 ', 'g'),
        '(?<=[{unspaced}])([{unspaced}])', '\1 \1', 'g'
    ), {folded_chars}) END
"""

# First the runs that something joins, then each of them whole and at the levels within: a path's
# file, an address's sides, a qualified name's last part, a number. Signs between digits stay as
# points (1.5 is not 15), all others go: HAT-136 is HAT136. Last the humps of camelCase.
COMPOUNDS = r"""
CREATE FUNCTION {schema}.pgcontext_text_compounds(content text) RETURNS text
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
ACCENTED = r"""
CREATE FUNCTION {schema}.pgcontext_text_accented(content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $function$ BEGIN RETURN CASE
    WHEN {schema}.pgcontext_text_language() = 'pg_catalog.english'::regconfig
        OR {schema}.pgcontext_text_language() = 'pg_catalog.simple'::regconfig
        OR content !~ '[\u00C0-\u024F\u1E00-\u1EFF]' THEN ''::tsvector
    ELSE array_to_tsvector(ARRAY(
        SELECT DISTINCT {schema}.pgcontext_text_unaccented(word.lexeme)
        FROM unnest(to_tsvector({schema}.pgcontext_text_language(), translate(
            regexp_replace(content, '[{unspaced}]+', ' ', 'g'),
            '{cut}', '{spaces}'
        ))) AS word
    )) END; END $function$
"""

WORDS = r"""
CREATE FUNCTION {schema}.pgcontext_text_words(content text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_tsvector({schema}.pgcontext_text_language(), translate(content, '{cut}', '{spaces}'))
"""

# The pattern tells texts that hold nothing joined, most of them, at a glance. PL/pgSQL, since it
# keeps the plans of its parts for as long as the session lasts: that a message is stored in 6
# microseconds more instead of 70. The path of names is its own, whatever the session's is.
VECTOR = r"""
CREATE FUNCTION {schema}.pgcontext_text_vector(content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    said text := left(coalesce(content, ''), {chars});
    folded text := {schema}.pgcontext_text_folded(said);
    vector tsvector := {schema}.pgcontext_text_words(folded);
BEGIN
    IF folded ~ '[^\W_][{joiners},]{1,3}[^\W_]|{humps}|[A-Za-z](?:\+\+|#)' THEN
        vector := vector || to_tsvector(
            {schema}.pgcontext_text_language(),
            left({schema}.pgcontext_text_compounds(folded), {compounds_chars})
        );
    END IF;
    IF octet_length(said) <> char_length(said) THEN
        vector := vector || {schema}.pgcontext_text_accented(left(said, {compounds_chars}));
    END IF;
    RETURN vector;
END $function$
"""

# Any of the words, by OR; a phrase in quotes has to be there. `phrases | phrases & words` matches
# what `phrases` does, and its words still count for the rank. Lexemes are quoted, so nothing in
# them is an operator. A last character of a run of pairs says nothing that the pair before didn't.
QUERY = r"""
CREATE FUNCTION {schema}.pgcontext_text_query(words text) RETURNS tsquery
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$ BEGIN RETURN (
    WITH phrase AS (
        SELECT matched.place, {schema}.pgcontext_text_words(
            {schema}.pgcontext_text_folded(matched.parts[1])) AS vector
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
            SELECT 0 AS place, {schema}.pgcontext_text_vector(words) AS vector
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

FUNCTIONS = (
    LANGUAGE,
    UNACCENTED,
    FOLDED,
    COMPOUNDS,
    ACCENTED,
    WORDS,
    VECTOR,
    QUERY,
)

# Thai, Lao, Burmese, Khmer; ideographs, kana, bopomofo; Hangul, whose particles hang on the words.
UNSPACED = (
    r"\u0E01-\u0EFF\u1000-\u109F\u1780-\u17FF"
    r"\u3005-\u3007\u3041-\u312F\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF"
    r"\uA960-\uA97F\uAC00-\uD7FF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
# Signs that join words into one, and those that the parser would read something into.
JOINERS = "-_./@:+~?=&"
CUT = "-+./@<&_~:"
# Where camelCase is cut: getUser, HTTPError; not in IDs, nor in COVIDs.
HUMPS = "[a-z][A-Z]|[A-Z][A-Z][a-z][a-z]"
VALUES = {
    "unspaced": UNSPACED,
    "joiners": JOINERS,
    "humps": HUMPS,
    "cut": CUT,
    "spaces": " " * len(CUT),
    "chars": "100000",
    "folded_chars": "150000",
    "compounds_chars": "50000",
    "compound_chars": "256",
    "query_words": "1000",
    "phrases": "20",
    "phrase_chars": "1000",
}

REPLACE_COLUMN = """
ALTER TABLE {schema}.messages
    DROP COLUMN text_search,
    ADD COLUMN text_search tsvector
        GENERATED ALWAYS AS ({generated}) STORED
"""

INDEX = """
CREATE INDEX messages_text_idx ON {schema}.messages USING gin (text_search)
    WHERE deleted_at IS NULL
"""

NEW = "{schema}.pgcontext_text_vector(content)"
OLD = "to_tsvector('english'::regconfig, left(coalesce(content, ''), 100000))"

DROP_FUNCTIONS = """
DROP FUNCTION {schema}.pgcontext_text_query(text),
    {schema}.pgcontext_text_vector(text),
    {schema}.pgcontext_text_words(text),
    {schema}.pgcontext_text_accented(text),
    {schema}.pgcontext_text_compounds(text),
    {schema}.pgcontext_text_folded(text),
    {schema}.pgcontext_text_unaccented(text),
    {schema}.pgcontext_text_language()
"""


def execute(text: str, **names: str) -> None:
    """Run one statement with the configured schema and language and other names in place."""
    context = op.get_context()
    names["schema"] = context.dialect.identifier_preparer.quote_schema(context.version_table_schema)
    names["language"] = context.opts["text_language"]
    for key, value in {**names, **VALUES}.items():
        text = text.replace("{" + key + "}", value)
    op.execute(text)


def replace_column(generated: str) -> None:
    """Generate `text_search` in another way, for all rows, and index it."""
    execute(REPLACE_COLUMN.replace("{generated}", generated))
    execute(INDEX)


def upgrade() -> None:
    for function in FUNCTIONS:
        execute(function)
    replace_column(NEW)


def downgrade() -> None:
    """Take texts as English again, cut as PostgreSQL's parser cuts them."""
    replace_column(OLD)
    execute(DROP_FUNCTIONS)
