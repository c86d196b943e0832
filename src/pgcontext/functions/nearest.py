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
# second look. It is believed if that found nothing of the best, and if few of the crowd are nearly
# as near as those: a graph that lost its way ends where all is about as far.
EF_SEARCH: Final = 600
GRAPH_CANDIDATES: Final = 650
GRAPH_TUPLES_MAX: Final = 100_000
GRAPH_FURTHEST_PER_HIT: Final = 2
GRAPH_CROWD: Final = 400
GRAPH_LOCAL_DIMENSION_MAX: Final = 10
GRAPH_CROWD_PER_HIT: Final = 4
# How many candidates are measured at first, at least and per hit; and how many are known by then,
# of a large tenant more: it would have to be scanned again for those that follow.
SCAN_DEPTH_MIN: Final = 200
SCAN_DEPTH_PER_HIT: Final = 4
SCAN_REACH: Final = 8
SCAN_ROWS_PER_CANDIDATE: Final = 32
SCAN_REACH_MAX: Final = 64
# What may be expected to be missed at most, as a share of the hits; and within which part of those
# measured the best must lie, should signatures tell nothing.
SCAN_MISSED_SHARE_MAX: Final = 0.03
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
        "local_dimension_max": GRAPH_LOCAL_DIMENSION_MAX,
        "crowd_per_hit": GRAPH_CROWD_PER_HIT,
        "depth_min": SCAN_DEPTH_MIN,
        "depth_per_hit": SCAN_DEPTH_PER_HIT,
        "reach": SCAN_REACH,
        "rows_per_candidate": SCAN_ROWS_PER_CANDIDATE,
        "reach_max": SCAN_REACH_MAX,
        "missed_share_max": SCAN_MISSED_SHARE_MAX,
        "margin": SCAN_MARGIN,
        "judged_min": JUDGED_MIN,
    }
    for ddl in (_SCAN, _GRAPH, _SIZE, _DISTANCES, _STANDS_OUT, _DEPTH, _NEAREST):
        yield filled(ddl, values)


# Inside messages_signature_idx alone. RETURN QUERY, since that may use parallel workers. Deleted
# contexts are hashed, however many: past what hash memory is expected to hold they would be gone
# through for each message. Equal signatures come in no order that means anything: in the index's
# own, by role and time, the first of many alike could pass for the best.
_SCAN: Final = """
CREATE FUNCTION {prefix}pgcontext_scan(
    of_tenant uuid, query vector, candidates integer, of_embedding_model text,
    of_roles text[], since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (ids uuid[], apart double precision[])
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
SET hash_mem_multiplier = '1000'
AS $function$
DECLARE
    sought bit({dimensions}) := binary_quantize(query)::bit({dimensions});
BEGIN
    IF of_metadata IS NULL THEN
        RETURN QUERY
        SELECT coalesce(array_agg(n.id), '{}'), coalesce(array_agg(n.apart), '{}')
        FROM (
            SELECT m.id, m.signature <~> sought AS apart
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
            ORDER BY apart, uuid_hash(m.id), m.id
            LIMIT candidates
        ) AS n;
    ELSE
        RETURN QUERY
        SELECT coalesce(array_agg(n.id), '{}'), coalesce(array_agg(n.apart), '{}')
        FROM (
            SELECT m.id, m.signature <~> sought AS apart
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
            ORDER BY apart, uuid_hash(m.id), m.id
            LIMIT candidates
        ) AS n;
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

# About how many embeddings the tenant has, by the planner's statistics: 0 where they don't say, and
# where the table has too few for it to matter. And whether to scan them would take longer than the
# graph, whose work grows as the tenant's share of the table shrinks: hence the square.
_SIZE: Final = """
CREATE FUNCTION {prefix}pgcontext_size(
    of_tenant uuid, exact_rows integer, OUT embedded double precision, OUT prefers_graph boolean
)
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    everybody double precision;
    of_schema name;
BEGIN
    SELECT i.reltuples, n.nspname INTO everybody, of_schema
    FROM pg_class AS i JOIN pg_namespace AS n ON n.oid = i.relnamespace
    WHERE i.oid = to_regclass('{prefix}messages_signature_idx');
    IF everybody > least(exact_rows, {rows_per_candidate} * {reach} * {depth_min}) THEN
        SELECT everybody * (s.most_common_freqs)[
            array_position(s.most_common_vals::text::uuid[], of_tenant)
        ]
        INTO embedded
        FROM pg_stats AS s
        WHERE s.schemaname = of_schema AND s.tablename = 'messages' AND s.attname = 'tenant_id';
    END IF;
    embedded := coalesce(embedded, 0);
    prefers_graph := embedded > 0 AND embedded * embedded > exact_rows * everybody AND EXISTS (
        SELECT FROM pg_index AS i
        WHERE i.indexrelid = to_regclass('{prefix}messages_embedding_idx') AND i.indisvalid
    );
END
$function$"""

# Whether the best of what the graph found came first, and the crowd behind them seems to lie in few
# dimensions: by how its distances grow (Levina and Bickel, 2004; of cosine distances, which are
# squares, it is half the number).
_STANDS_OUT: Final = """
CREATE FUNCTION {prefix}pgcontext_stands_out(distances double precision[], judged integer)
RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $function$
BEGIN
    RETURN (
        WITH nearest AS (
            SELECT greatest(m.distance, 1e-6) AS distance, m.place,
                   row_number() OVER (ORDER BY m.distance, m.place) AS ordinal
            FROM unnest(distances) WITH ORDINALITY AS m (distance, place)
            WHERE m.distance IS NOT NULL
        )
        SELECT max(n.place) FILTER (WHERE n.ordinal <= judged) <= {furthest_per_hit} * judged
               AND avg(ln(n.distance / edge.distance)) FILTER (WHERE n.ordinal > judged)
                   <= -1.0 / {local_dimension_max}
        FROM nearest AS edge JOIN nearest AS n ON n.ordinal < edge.ordinal
        WHERE edge.ordinal = {crowd}
    );
END
$function$"""

# In the candidates' order. A vector of zeros, which only SQL could have stored, is at no distance.
_DISTANCES: Final = """
CREATE FUNCTION {prefix}pgcontext_distances(of_tenant uuid, query vector, candidates uuid[])
RETURNS double precision[]
LANGUAGE plpgsql STABLE
AS $function$
BEGIN
    RETURN ARRAY(
        SELECT nullif(d.distance, 'NaN')
        FROM unnest(candidates) WITH ORDINALITY AS c (id, place)
        CROSS JOIN LATERAL (
            SELECT m.embedding <=> query AS distance
            FROM {prefix}messages AS m
            WHERE m.tenant_id = of_tenant AND m.id = c.id
            LIMIT 1
        ) AS d
        ORDER BY c.place
    );
END
$function$"""

# How many of the candidates are to be measured: known how far apart the signatures of all of them
# are, and the distances of the first. Distances lie about a line over signatures. How closely tells
# how likely each of the others is nearer than the last of the best: at most exp(-z²/2)/2, a bound
# on the normal distribution's tail. Measured are so many that hardly one of the best is left out.
# Unless the list is complete, as many as it has are taken to follow it. And where the best lie
# anywhere among those measured, signatures tell too little; however often a text was said, it is
# one thing that was measured.
_DEPTH: Final = """
CREATE FUNCTION {prefix}pgcontext_depth(
    apart double precision[], distances double precision[], judged integer, complete boolean
) RETURNS integer
LANGUAGE plpgsql IMMUTABLE
AS $function$
DECLARE
    measured integer := cardinality(distances);
    best record;
    line record;
    needed integer;
BEGIN
    SELECT max(b.distance) AS last, max(b.place) AS furthest INTO best
    FROM (
        SELECT m.distance, m.place
        FROM unnest(distances) WITH ORDINALITY AS m (distance, place)
        ORDER BY m.distance, m.place
        LIMIT judged
    ) AS b;
    IF best.last <= 1e-6 THEN  -- nothing can be nearer
        RETURN measured;
    END IF;
    SELECT f.slope, f.distance - f.slope * f.apart AS start,
           sqrt(greatest(f.variance, 1e-18)) AS spread, f.different
    INTO line
    FROM (
        SELECT greatest(coalesce(regr_slope(m.distance, m.apart), 0), 0) AS slope,
               avg(m.distance) AS distance, avg(m.apart) AS apart,
               var_pop(m.distance) * (1 - coalesce(regr_r2(m.distance, m.apart), 0)) AS variance,
               count(DISTINCT m.distance) AS different
        FROM unnest(apart[1:measured], distances) AS m (apart, distance)
    ) AS f;
    SELECT measured + coalesce(sum(o.candidates), 0) INTO needed
    FROM (
        SELECT l.candidates, sum(
                   l.candidates / 2 * exp(least(greatest(
                       (line.start + line.slope * l.apart - best.last) / line.spread, 0
                   ), 30) ^ 2 / -2)
               ) OVER (ORDER BY l.apart DESC) AS missed
        FROM (
            SELECT c.apart, count(*)::double precision AS candidates
            FROM unnest(apart[measured + 1:]) AS c (apart)
            GROUP BY c.apart
            UNION ALL
            SELECT apart[cardinality(apart)] + 1, cardinality(apart) WHERE NOT complete
        ) AS l
    ) AS o
    WHERE o.missed > {missed_share_max} * judged;
    IF line.different < {margin} * best.furthest THEN
        RETURN greatest(needed, {margin} * best.furthest, measured * 3 / 2);
    END IF;
    RETURN needed;
END
$function$"""

# With nothing to filter, and where an exact scan would read too much, the graph is asked; it is
# believed or the scan answers, which measures until nothing is expected to be missed.
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
    apart double precision[];
    distances double precision[];
    judged integer := greatest(sure, {judged_min});
    depth integer := greatest({depth_min}, {depth_per_hit} * judged, hits);
    size record := {prefix}pgcontext_size(of_tenant, exact_rows);
    reach integer := depth * least(
        greatest({reach}, size.embedded / {rows_per_candidate} / depth), {reach_max}
    );
    needed integer;
    complete boolean;
BEGIN
    IF num_nulls(of_roles, since, until, of_metadata, of_model) = 5
       AND size.prefers_graph AND judged * {crowd_per_hit} <= {crowd} THEN
        candidates := ARRAY(
            SELECT g.id
            FROM {prefix}pgcontext_graph(of_tenant, query, of_embedding_model) AS g
        );
        distances := {prefix}pgcontext_distances(of_tenant, query, candidates);
        IF {prefix}pgcontext_stands_out(distances, judged) THEN
            RETURN QUERY
            SELECT f.id, f.distance FROM unnest(candidates, distances) AS f (id, distance)
            WHERE f.distance IS NOT NULL
            ORDER BY f.distance, f.id
            LIMIT hits;
            RETURN;
        END IF;
    END IF;
    distances := '{}';
    <<searching>>
    LOOP
        SELECT s.ids, s.apart INTO candidates, apart
        FROM {prefix}pgcontext_scan(
            of_tenant, query, reach, of_embedding_model, of_roles, since, until, of_metadata,
            of_model
        ) AS s;
        complete := cardinality(candidates) < reach;
        LOOP
            distances := distances || {prefix}pgcontext_distances(
                of_tenant, query, candidates[cardinality(distances) + 1:depth]
            );
            EXIT searching WHEN complete AND depth >= cardinality(candidates);
            needed := {prefix}pgcontext_depth(apart, distances, judged, complete);
            EXIT searching WHEN needed <= depth;
            EXIT WHEN depth >= cardinality(candidates);
            depth := least(needed, cardinality(candidates));
        END LOOP;
        reach := {reach} * reach;
    END LOOP;
    RETURN QUERY
    SELECT f.id, f.distance FROM unnest(candidates[1:depth], distances) AS f (id, distance)
    WHERE f.distance IS NOT NULL
    ORDER BY f.distance, f.id
    LIMIT hits;
END
$function$"""
