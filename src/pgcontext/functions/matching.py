"""The database's function for the messages of a tenant that match words.

A question in plain language matches a great part of all messages by its commonest words, and none
of those is among the best if something matches the rare ones. PostgreSQL knows how common a word is
(`pg_stats`), so the rare ones are looked for first.

It is a function for two reasons: a plan made for these words, and not for any, tells whether to go
by the words' index or by the tenant's; and only a function can look at what was found, and go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgcontext.functions.filling import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ranking a match takes a few microseconds. What is expected beyond this is left to a second look.
RANKED_ROWS_MAX: Final = 20_000
# Fewer messages than this that have a word are all among the candidates, whatever their rank: an
# identifier must not be lost among what shares the rest of the query.
RARE_ROWS_MAX: Final = 50
RARE_EXPECTED_MAX: Final = 1_000
RARE_TERMS_MAX: Final = 32


def matching_functions(prefix: str) -> Iterator[str]:
    """Yield the DDL of the functions, in the order in which they can be made.

    Args:
        prefix: the schema of the tables, quoted and with its dot; empty for the search path.
    """
    values = {
        "prefix": prefix,
        "ranked_rows_max": RANKED_ROWS_MAX,
        "rare_rows_max": RARE_ROWS_MAX,
        "rare_expected_max": RARE_EXPECTED_MAX,
        "rare_terms_max": RARE_TERMS_MAX,
    }
    for ddl in (_EXPECTED, _MATCHES, _MATCHING):
        yield filled(ddl, values)


# How many messages of the table have each of these words; 0 where that isn't known, or few.
_EXPECTED: Final = """
CREATE FUNCTION {prefix}pgcontext_expected(terms tsquery[]) RETURNS double precision[]
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    messages real := (
        SELECT c.reltuples FROM pg_class AS c WHERE c.oid = '{prefix}messages'::regclass
    );
BEGIN
    IF messages <= {ranked_rows_max} THEN
        RETURN array_fill(0::double precision, ARRAY[cardinality(terms)]);
    END IF;
    RETURN ARRAY(
        SELECT coalesce(messages * known.frequency, 0)
        FROM unnest(terms) WITH ORDINALITY AS t (term, place)
        LEFT JOIN (
            SELECT '''' || replace(e.lexeme, '''', '''''') || '''' AS term, e.frequency
            FROM pg_stats AS s
            JOIN pg_class AS c ON c.oid = '{prefix}messages'::regclass
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            CROSS JOIN LATERAL unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs)
                AS e (lexeme, frequency)
            WHERE s.schemaname = n.nspname
              AND s.tablename = c.relname AND s.attname = 'text_search'
        ) AS known ON known.term = t.term::text
        ORDER BY t.place
    );
END
$function$"""

# The best matches of `wanted`, by PostgreSQL's rank for `query`, less for texts of many words; or
# any of them, without a `query`.
_MATCHES: Final = """
CREATE FUNCTION {prefix}pgcontext_matches(
    of_tenant uuid, wanted tsquery, query tsquery, candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
AS $function$
BEGIN
    RETURN QUERY
    SELECT m.id
    FROM {prefix}messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.text_search @@ wanted
      AND m.deleted_at IS NULL
      AND (of_roles IS NULL OR m.role = ANY (of_roles))
      AND (since IS NULL OR m.created_at >= since)
      AND (until IS NULL OR m.created_at < until)
      AND (of_model IS NULL OR m.model = of_model)
      AND EXISTS (
          SELECT FROM {prefix}contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NULL
            AND (of_metadata IS NULL OR c.metadata @> of_metadata)
      )
    ORDER BY CASE WHEN query IS NOT NULL THEN
                 ts_rank(m.text_search, query)
                 / (1 + ln(1 + length(m.text_search) / 100.0::double precision))
             END DESC,
             CASE WHEN query IS NOT NULL THEN m.id END DESC
    LIMIT candidates;
END
$function$"""

_MATCHING: Final = """
CREATE FUNCTION {prefix}pgcontext_matching(
    of_tenant uuid, query tsquery, terms tsquery[], candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    expected double precision[] := {prefix}pgcontext_expected(terms);
    rare tsquery;
    few uuid[];
    found uuid[];
BEGIN
    SELECT string_agg(o.term::text, ' | ')::tsquery INTO rare
    FROM (
        SELECT t.term, row_number() OVER rarest_first AS place,
               sum(t.expected) OVER rarest_first AS running, sum(t.expected) OVER () AS total
        FROM unnest(terms, expected) AS t (term, expected)
        WINDOW rarest_first AS (ORDER BY t.expected, t.term::text ROWS UNBOUNDED PRECEDING)
    ) AS o
    WHERE o.total > {ranked_rows_max} AND (o.place = 1 OR o.running <= {ranked_rows_max});
    LOOP
        found := ARRAY(
            SELECT m.id
            FROM {prefix}pgcontext_matches(
                of_tenant, coalesce(rare && query, query), query, candidates, of_roles, since,
                until, of_metadata, of_model
            ) AS m
        );
        EXIT WHEN rare IS NULL OR cardinality(found) >= candidates;
        rare := NULL;
    END LOOP;
    IF cardinality(found) >= candidates THEN
        FOR place IN 1 .. least(cardinality(terms), {rare_terms_max}) LOOP
            CONTINUE WHEN expected[place] > {rare_expected_max};
            few := ARRAY(
                SELECT m.id
                FROM {prefix}pgcontext_matches(
                    of_tenant, terms[place] && query, NULL, {rare_rows_max}, of_roles, since,
                    until, of_metadata, of_model
                ) AS m
            );
            IF cardinality(few) < {rare_rows_max} THEN
                found := found || few;
            END IF;
        END LOOP;
    END IF;
    RETURN QUERY SELECT DISTINCT f.id FROM unnest(found) AS f (id);
END
$function$"""
