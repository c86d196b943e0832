"""The database's function for the messages of a tenant that match words.

A question in plain language matches a great part of all messages by its commonest words, and none
of those is among the best if something matches the rare ones. PostgreSQL knows how common a word is
(`pg_stats`), so the rare ones are looked for first.

It is a function for two reasons: a plan made for these words, and not for any, tells whether to go
by the words' index or by the tenant's; and only a function can look at what was found, and go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ranking a match takes a few microseconds. What is expected beyond this is left to a second look.
RANKED_ROWS_MAX: Final = 20_000


def matching_functions(prefix: str) -> Iterator[str]:
    """Yield the DDL of the functions, in the order in which they can be made.

    Args:
        prefix: the schema of the tables, quoted and with its dot; empty for the search path.
    """
    for ddl in (_RARE, _MATCHING):
        yield ddl.replace("{prefix}", prefix).replace("{ranked_rows_max}", str(RANKED_ROWS_MAX))


# Any of the rarest of these words, as many as together are expected in so many messages; NULL when
# that is all of them, or nothing is known.
_RARE: Final = """
CREATE FUNCTION {prefix}pgcontext_rare(terms tsquery[]) RETURNS tsquery
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    messages real := (
        SELECT c.reltuples FROM pg_class AS c WHERE c.oid = '{prefix}messages'::regclass
    );
    rare tsquery;
BEGIN
    IF messages <= {ranked_rows_max} THEN
        RETURN NULL;
    END IF;
    WITH known AS (
        SELECT e.lexeme, e.frequency
        FROM pg_stats AS s
        JOIN pg_class AS t ON t.oid = '{prefix}messages'::regclass
        CROSS JOIN LATERAL unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs)
            AS e (lexeme, frequency)
        WHERE s.schemaname = t.relnamespace::regnamespace::text
          AND s.tablename = t.relname AND s.attname = 'text_search'
    ),
    ordered AS (
        SELECT term.term, row_number() OVER rarest_first AS place,
               sum(coalesce(known.frequency, 0)) OVER rarest_first AS frequency
        FROM unnest(terms) AS term (term)
        LEFT JOIN known ON '''' || replace(known.lexeme, '''', '''''') || '''' = term.term::text
        WINDOW rarest_first AS (
            ORDER BY coalesce(known.frequency, 0), term.term::text ROWS UNBOUNDED PRECEDING
        )
    )
    SELECT string_agg(ordered.term::text, ' | ')::tsquery
    INTO rare
    FROM ordered
    WHERE (ordered.place = 1 OR ordered.frequency * messages <= {ranked_rows_max})
      AND (SELECT max(o.frequency) FROM ordered AS o) * messages > {ranked_rows_max};
    RETURN rare;
END
$function$"""

# Best first, by PostgreSQL's rank, less for texts of many words. With enough of the rare words'
# matches there is no second look.
_MATCHING: Final = """
CREATE FUNCTION {prefix}pgcontext_matching(
    of_tenant uuid, query tsquery, terms tsquery[], candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
AS $function$
DECLARE
    rare tsquery := {prefix}pgcontext_rare(terms);
    wanted tsquery := coalesce(rare && query, query);
    found uuid[];
BEGIN
    LOOP
        found := ARRAY(
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
            ORDER BY ts_rank(m.text_search, query)
                     / (1 + ln(1 + length(m.text_search) / 100.0::double precision)) DESC,
                     m.id DESC
            LIMIT candidates
        );
        EXIT WHEN rare IS NULL OR cardinality(found) >= candidates;
        rare := NULL;
        wanted := query;
    END LOOP;
    RETURN QUERY SELECT unnest(found);
END
$function$"""
