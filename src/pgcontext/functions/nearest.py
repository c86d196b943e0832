"""The database's functions for the nearest messages of a tenant.

A function's SET clause is the one way to give a statement planner settings of its own in a single
turn; nothing of it stays behind in the session. And only a function can look at what a search has
found so far, and go on: that is what the choice between the two ways of searching rests on.

`pgcontext_nearest` answers. Both of the others give it candidates, the likeliest first:
`pgcontext_scan` those whose signatures are nearest, exact over everything that matches, and
`pgcontext_graph` those that the HNSW index comes upon. See docs/search.md for what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgcontext.functions.filling import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

# The graph's own settings: how many it keeps in sight, and how many it gives, which takes it a
# second look. It is believed if that found nothing that belongs to the best, and if the best are
# much nearer than what is around them: a graph that lost its way ends where all is about as far.
EF_SEARCH: Final = 600
GRAPH_CANDIDATES: Final = 650
GRAPH_TUPLES_MAX: Final = 100_000
GRAPH_FURTHEST_PER_HIT: Final = 2
GRAPH_CROWD: Final = 400
GRAPH_CONTRAST: Final = 0.7
# How many signatures are looked behind at first, per hit and at least, and how far the best hits
# must lie within them to be taken for all there is.
SCAN_DEPTH_MIN: Final = 400
SCAN_DEPTH_PER_HIT: Final = 8
SCAN_MARGIN: Final = 4
# Of fewer hits than this the next best are judged too: that one alone comes early says little.
JUDGED_MIN: Final = 10


def nearest_functions(dimensions: int, prefix: str) -> Iterator[str]:
    """Yield the DDL of the functions, in the order in which they can be made.

    Args:
        dimensions: the length of the embeddings.
        prefix: the schema of the tables, quoted and with its dot; empty for the search path.
    """
    values = {
        "prefix": prefix,
        "dimensions": dimensions,
        "ef_search": EF_SEARCH,
        "graph_candidates": GRAPH_CANDIDATES,
        "graph_tuples_max": GRAPH_TUPLES_MAX,
        "furthest_per_hit": GRAPH_FURTHEST_PER_HIT,
        "crowd": GRAPH_CROWD,
        "contrast": GRAPH_CONTRAST,
        "depth_min": SCAN_DEPTH_MIN,
        "depth_per_hit": SCAN_DEPTH_PER_HIT,
        "margin": SCAN_MARGIN,
        "judged_min": JUDGED_MIN,
    }
    for ddl in (_SCAN, _GRAPH, _PREFERS_GRAPH, _BEST, _NEAREST):
        yield filled(ddl, values)


# Inside messages_signature_idx alone. RETURN QUERY, since that may use parallel workers. Deleted
# contexts are hashed, however many: past what hash memory is expected to hold they would be gone
# through for each message. Equal signatures come in no order that means anything: in the index's
# own, by role and time, the first of many alike could pass for the best.
_SCAN: Final = """
CREATE FUNCTION {prefix}pgcontext_scan(
    of_tenant uuid, query vector, candidates integer, of_embedding_model text,
    of_roles text[], since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
SET hash_mem_multiplier = '1000'
AS $function$
DECLARE
    sought bit({dimensions}) := binary_quantize(query)::bit({dimensions});
BEGIN
    IF of_metadata IS NULL THEN
        RETURN QUERY
        SELECT m.id
        FROM {prefix}messages AS m
        WHERE m.tenant_id = of_tenant
          AND m.deleted_at IS NULL
          AND m.embedding IS NOT NULL
          AND m.role = ANY (coalesce(of_roles, '{user,assistant,system,tool,developer}'))
          AND m.created_at >= coalesce(since, '-infinity')
          AND m.created_at < coalesce(until, 'infinity')
          AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
          AND (of_model IS NULL OR m.model = of_model)
          AND m.context_id NOT IN (
              SELECT c.id FROM {prefix}contexts AS c
              WHERE c.tenant_id = of_tenant AND c.deleted_at IS NOT NULL
          )
        ORDER BY m.signature <~> sought, uuid_hash(m.id)
        LIMIT candidates;
    ELSE
        RETURN QUERY
        SELECT m.id
        FROM {prefix}contexts AS c
        CROSS JOIN LATERAL (
            SELECT m.id, m.signature
            FROM {prefix}messages AS m
            WHERE m.tenant_id = of_tenant AND m.context_id = c.id
              AND m.deleted_at IS NULL
              AND m.embedding IS NOT NULL
              AND (of_roles IS NULL OR m.role = ANY (of_roles))
              AND (since IS NULL OR m.created_at >= since)
              AND (until IS NULL OR m.created_at < until)
              AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
              AND (of_model IS NULL OR m.model = of_model)
            OFFSET 0
        ) AS m
        WHERE c.tenant_id = of_tenant AND c.deleted_at IS NULL AND c.metadata @> of_metadata
        ORDER BY m.signature <~> sought, uuid_hash(m.id)
        LIMIT candidates;
    END IF;
END
$function$"""

_GRAPH: Final = """
CREATE FUNCTION {prefix}pgcontext_graph(
    of_tenant uuid, query vector, of_embedding_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
SET enable_sort = 'off'
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '{ef_search}'
SET hnsw.max_scan_tuples = '{graph_tuples_max}'
AS $function$
DECLARE
    sought halfvec({dimensions}) := query::halfvec({dimensions});
BEGIN
    RETURN QUERY
    SELECT m.id
    FROM {prefix}messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.deleted_at IS NULL
      AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
      AND NOT EXISTS (
          SELECT FROM {prefix}contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NOT NULL
      )
    ORDER BY m.embedding::halfvec({dimensions}) <=> sought
    LIMIT {graph_candidates};
END
$function$"""

# Whether an exact scan of all that the tenant holds would take longer than the graph.
_PREFERS_GRAPH: Final = """
CREATE FUNCTION {prefix}pgcontext_prefers_graph(of_tenant uuid, exact_rows integer)
RETURNS boolean
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    embedded real := (
        SELECT i.reltuples FROM pg_class AS i
        WHERE i.oid = to_regclass('{prefix}messages_signature_idx')
          AND to_regclass('{prefix}messages_embedding_idx') IS NOT NULL
    );
    share real;
BEGIN
    IF coalesce(embedded, 0) <= exact_rows THEN
        RETURN false;
    END IF;
    SELECT (s.most_common_freqs)[
        array_position(s.most_common_vals::text::uuid[], of_tenant)
    ]
    INTO share
    FROM pg_stats AS s
    JOIN pg_class AS t ON t.oid = to_regclass('{prefix}messages')
    JOIN pg_namespace AS n ON n.oid = t.relnamespace
    WHERE s.schemaname = n.nspname
      AND s.tablename = t.relname AND s.attname = 'tenant_id';
    RETURN coalesce(embedded * share * share > exact_rows, false);
END
$function$"""

# The best of some candidates by their true distance, the last place that one of those was at which
# are to be sure, and how many different ones were seen: however often a text was said, it is one
# thing that was looked at.
_BEST: Final = """
CREATE FUNCTION {prefix}pgcontext_best(
    of_tenant uuid, query vector, candidates uuid[], hits integer, sure integer,
    OUT ids uuid[], OUT distances double precision[], OUT furthest bigint, OUT seen bigint
)
LANGUAGE plpgsql STABLE
AS $function$
BEGIN
    WITH measured AS MATERIALIZED (
        SELECT c.id, c.place, d.distance
        FROM unnest(candidates) WITH ORDINALITY AS c (id, place)
        CROSS JOIN LATERAL (
            SELECT m.embedding <=> query AS distance
            FROM {prefix}messages AS m
            WHERE m.tenant_id = of_tenant AND m.id = c.id
            LIMIT 1
        ) AS d
    )
    SELECT array_agg(b.id ORDER BY b.ordinal), array_agg(b.distance ORDER BY b.ordinal),
           max(b.place) FILTER (WHERE b.ordinal <= sure),
           (SELECT count(DISTINCT measured.distance) FROM measured)
    INTO ids, distances, furthest, seen
    FROM (
        SELECT n.*, row_number() OVER (ORDER BY n.distance, n.id) AS ordinal
        FROM (
            SELECT * FROM measured ORDER BY measured.distance, measured.id LIMIT hits
        ) AS n
    ) AS b;
END
$function$"""

# With nothing to filter, and where an exact scan would read too much, the graph is asked. Its work
# grows as the tenant's share of the table shrinks; the scan's is the tenant's rows: hence the
# square. What the tenant holds is taken from the planner's statistics; where there are none, or
# none of this tenant, the scan is right too. What the graph says is believed if its best hits came
# first, and are much nearer than the crowd; otherwise the scan answers.
_NEAREST: Final = """
CREATE FUNCTION {prefix}pgcontext_nearest(
    of_tenant uuid, query vector, hits integer, sure integer, exact_rows integer,
    of_embedding_model text, of_roles text[], since timestamptz, until timestamptz,
    of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid, distance double precision)
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    candidates uuid[];
    best record;
    judged integer := greatest(sure, {judged_min});
    depth integer := greatest({depth_min}, {depth_per_hit} * judged, hits);
    reach integer := {margin} * depth;
BEGIN
    IF num_nulls(of_roles, since, until, of_metadata, of_model) = 5
       AND {prefix}pgcontext_prefers_graph(of_tenant, exact_rows) THEN
        candidates := ARRAY(
            SELECT g.id
            FROM {prefix}pgcontext_graph(of_tenant, query, of_embedding_model) AS g
        );
        best := {prefix}pgcontext_best(
            of_tenant, query, candidates, greatest(hits, {crowd}), judged
        );
        IF best.furthest <= {furthest_per_hit} * judged
           AND best.distances[judged] <= {contrast} * best.distances[{crowd}] THEN
            RETURN QUERY SELECT * FROM unnest(best.ids[1:hits], best.distances[1:hits]);
            RETURN;
        END IF;
    END IF;
    LOOP
        candidates := ARRAY(
            SELECT s.id
            FROM {prefix}pgcontext_scan(
                of_tenant, query, reach, of_embedding_model, of_roles, since, until, of_metadata,
                of_model
            ) AS s
        );
        WHILE depth <= reach LOOP
            best := {prefix}pgcontext_best(
                of_tenant, query, candidates[1:depth], greatest(hits, judged), judged
            );
            IF best.furthest * {margin} <= best.seen
               OR cardinality(candidates) <= depth AND cardinality(candidates) < reach THEN
                RETURN QUERY SELECT * FROM unnest(best.ids[1:hits], best.distances[1:hits]);
                RETURN;
            END IF;
            depth := depth * {margin};
        END LOOP;
        reach := {margin} * depth;
    END LOOP;
END
$function$"""
