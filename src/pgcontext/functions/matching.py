"""The database's function for the messages of a tenant that match words.

A question in plain language matches a great part of all messages by its commonest words, and none
of those is among the best if something matches the rare ones. PostgreSQL knows how common a word is
(`pg_stats`), so in a tenant of many messages the rare ones are looked for first.

It is a function for two reasons: a plan made for these words, and not for any, tells whether to go
by the words' index or by the tenant's; and only a function can look at what was found, and go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgcontext.functions.filling import filled
from pgcontext.statements.ranking import RARE_ROWS_MAX, RARE_TERMS_MAX, rank_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ranking a match takes a few microseconds. What is expected beyond this is left to a second look.
RANKED_ROWS_MAX: Final = 20_000


def matching_functions(prefix: str) -> Iterator[str]:
    """Yield the DDL of the functions, in the order in which they can be made.

    Args:
        prefix: the schema of the tables, quoted and with its dot; empty for the search path.
    """
    values = {
        "prefix": prefix,
        "ranked_rows_max": RANKED_ROWS_MAX,
        "rare_rows_max": RARE_ROWS_MAX,
        "rare_terms_max": RARE_TERMS_MAX,
        "rank": rank_of("m.text_search", "query"),
    }
    for ddl in (_EXPECTED, _MATCHES, _MATCHING):
        yield filled(ddl, values)


# How many messages of the table have each of these words; 0 where that isn't known, or few. All 0
# for a tenant that is small, whatever others say: what it has is soon looked at. A tenant that the
# statistics don't name has no more than the last that they name, nor than these together leave; if
# they name none, all are small.
_EXPECTED: Final = """
CREATE FUNCTION {prefix}pgcontext_expected(of_tenant uuid, terms tsquery[])
RETURNS double precision[]
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    messages real;
    home name;
    share real;
BEGIN
    SELECT c.reltuples, n.nspname INTO messages, home
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = '{prefix}messages'::regclass;
    SELECT coalesce(
        (s.most_common_freqs)[
            array_position(s.most_common_vals::text::uuid[], of_tenant)
        ],
        (
            SELECT least(min(f.frequency), 1 - sum(f.frequency))
            FROM unnest(s.most_common_freqs) AS f (frequency)
        )
    )
    INTO share
    FROM pg_stats AS s
    WHERE s.schemaname = home AND s.tablename = 'messages' AND s.attname = 'tenant_id';
    IF messages * coalesce(share, 0) <= {ranked_rows_max} THEN
        RETURN array_fill(0::double precision, ARRAY[cardinality(terms)]);
    END IF;
    RETURN ARRAY(
        SELECT coalesce(messages * known.frequency, 0)
        FROM unnest(terms) WITH ORDINALITY AS t (term, place)
        LEFT JOIN (
            SELECT '''' || replace(e.lexeme, '''', '''''') || '''' AS term, e.frequency
            FROM pg_stats AS s
            CROSS JOIN LATERAL unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs)
                AS e (lexeme, frequency)
            WHERE s.schemaname = home AND s.tablename = 'messages' AND s.attname = 'text_search'
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
        {rank}
    END DESC, CASE WHEN query IS NOT NULL THEN m.id END DESC
    LIMIT candidates;
END
$function$"""

# Words are looked for that together are expected in no more messages than can be ranked, the rarest
# of all in any case; then all words. Where that leaves matches out, each of those first words is
# looked up: what few have comes along. Without a phrase a query is its words and an OR between any
# two, and each is enough: so it is looked up alone, and the index reads nothing else. Any few that
# have it will do, but not in a large tenant: to find few of what the statistics call common, the
# planner would go through the table, and through all of it where they are wrong about this tenant.
_MATCHING: Final = """
CREATE FUNCTION {prefix}pgcontext_matching(
    of_tenant uuid, query tsquery, terms tsquery[], candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    expected double precision[] := {prefix}pgcontext_expected(of_tenant, terms);
    rare tsquery[] := ARRAY(
        SELECT o.term
        FROM (
            SELECT t.term, t.place, row_number() OVER rarest_first AS ordinal,
                   sum(t.expected) OVER rarest_first AS running
            FROM unnest(terms, expected) WITH ORDINALITY AS t (term, expected, place)
            WINDOW rarest_first AS (ORDER BY t.expected, t.place ROWS UNBOUNDED PRECEDING)
        ) AS o
        WHERE o.ordinal = 1 OR o.running <= {ranked_rows_max}
        ORDER BY o.place
    );
    wanted tsquery := query;
    any_is_enough boolean := numnode(query) < 2 * cardinality(terms);
    ranked tsquery := CASE WHEN 0 <> ANY (expected) THEN query END;
    term tsquery;
    few uuid[];
    found uuid[];
BEGIN
    IF cardinality(rare) < cardinality(terms) THEN
        wanted := array_to_string(rare, ' | ')::tsquery && query;
    END IF;
    LOOP
        found := ARRAY(
            SELECT m.id
            FROM {prefix}pgcontext_matches(
                of_tenant, wanted, query, candidates, of_roles, since, until, of_metadata, of_model
            ) AS m
        );
        EXIT WHEN wanted = query OR cardinality(found) >= candidates;
        wanted := query;
    END LOOP;
    IF cardinality(found) >= candidates THEN
        FOREACH term IN ARRAY rare[1:{rare_terms_max}] LOOP
            few := ARRAY(
                SELECT m.id
                FROM {prefix}pgcontext_matches(
                    of_tenant, CASE WHEN any_is_enough THEN term ELSE term && query END, ranked,
                    {rare_rows_max}, of_roles, since, until, of_metadata, of_model
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
