"""Search a tenant exactly by signatures, and by the HNSW index where it holds many messages.

The text of this file is frozen: it never follows later changes of `pgcontext.schema`. Appends wait
while the index is built. Code written for the former schema can't search a tenant by vector on
this one, nor this one's code on that.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCAN = """
CREATE FUNCTION {schema}.pgcontext_scan(
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
            FROM {schema}.messages AS m
            WHERE m.tenant_id = of_tenant
              AND m.deleted_at IS NULL
              AND m.embedding IS NOT NULL
              AND m.role = ANY (coalesce(of_roles, '{user,assistant,system,tool,developer}'))
              AND m.created_at >= coalesce(since, '-infinity')
              AND m.created_at < coalesce(until, 'infinity')
              AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
              AND (of_model IS NULL OR m.model = of_model)
              AND m.context_id NOT IN (
                  SELECT c.id FROM {schema}.contexts AS c
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
            FROM {schema}.contexts AS c
            CROSS JOIN LATERAL (
                SELECT m.id, m.signature
                FROM {schema}.messages AS m
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

GRAPH = """
CREATE FUNCTION {schema}.pgcontext_graph(
    of_tenant uuid, query vector, of_embedding_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
SET enable_sort = 'off'
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '600'
SET hnsw.max_scan_tuples = '100000'
AS $function$
DECLARE
    sought halfvec({dimensions}) := query::halfvec({dimensions});
BEGIN
    RETURN QUERY
    SELECT m.id
    FROM {schema}.messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.deleted_at IS NULL
      AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
      AND NOT EXISTS (
          SELECT FROM {schema}.contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NOT NULL
      )
    ORDER BY m.embedding::halfvec({dimensions}) <=> sought
    LIMIT 650;
END
$function$"""

SIZE = """
CREATE FUNCTION {schema}.pgcontext_size(
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
    WHERE i.oid = to_regclass('{schema}.messages_signature_idx');
    IF everybody > least(exact_rows, 32 * 8 * 200) THEN
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
        WHERE i.indexrelid = to_regclass('{schema}.messages_embedding_idx') AND i.indisvalid
    );
END
$function$"""

DISTANCES = """
CREATE FUNCTION {schema}.pgcontext_distances(of_tenant uuid, query vector, candidates uuid[])
RETURNS double precision[]
LANGUAGE plpgsql STABLE
AS $function$
BEGIN
    RETURN ARRAY(
        SELECT nullif(d.distance, 'NaN')
        FROM unnest(candidates) WITH ORDINALITY AS c (id, place)
        CROSS JOIN LATERAL (
            SELECT m.embedding <=> query AS distance
            FROM {schema}.messages AS m
            WHERE m.tenant_id = of_tenant AND m.id = c.id
            LIMIT 1
        ) AS d
        ORDER BY c.place
    );
END
$function$"""

STANDS_OUT = """
CREATE FUNCTION {schema}.pgcontext_stands_out(distances double precision[], judged integer)
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
        SELECT max(n.place) FILTER (WHERE n.ordinal <= judged) <= 2 * judged
               AND avg(ln(n.distance / edge.distance)) FILTER (WHERE n.ordinal > judged)
                   <= -1.0 / 10
        FROM nearest AS edge JOIN nearest AS n ON n.ordinal < edge.ordinal
        WHERE edge.ordinal = 400
    );
END
$function$"""

DEPTH = """
CREATE FUNCTION {schema}.pgcontext_depth(
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
    WHERE o.missed > 0.03 * judged;
    IF line.different < 4 * best.furthest THEN
        RETURN greatest(needed, 4 * best.furthest, measured * 3 / 2);
    END IF;
    RETURN needed;
END
$function$"""

NEAREST = """
CREATE FUNCTION {schema}.pgcontext_nearest(
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
    judged integer := greatest(sure, 10);
    depth integer := greatest(200, 4 * judged, hits);
    size record := {schema}.pgcontext_size(of_tenant, exact_rows);
    reach integer := depth * least(
        greatest(8, size.embedded / 32 / depth), 64
    );
    needed integer;
    complete boolean;
BEGIN
    IF num_nulls(of_roles, since, until, of_metadata, of_model) = 5
       AND size.prefers_graph AND judged * 4 <= 400 THEN
        candidates := ARRAY(
            SELECT g.id
            FROM {schema}.pgcontext_graph(of_tenant, query, of_embedding_model) AS g
        );
        distances := {schema}.pgcontext_distances(of_tenant, query, candidates);
        IF {schema}.pgcontext_stands_out(distances, judged) THEN
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
        FROM {schema}.pgcontext_scan(
            of_tenant, query, reach, of_embedding_model, of_roles, since, until, of_metadata,
            of_model
        ) AS s;
        complete := cardinality(candidates) < reach;
        LOOP
            distances := distances || {schema}.pgcontext_distances(
                of_tenant, query, candidates[cardinality(distances) + 1:depth]
            );
            EXIT searching WHEN complete AND depth >= cardinality(candidates);
            needed := {schema}.pgcontext_depth(apart, distances, judged, complete);
            EXIT searching WHEN needed <= depth;
            EXIT WHEN depth >= cardinality(candidates);
            depth := least(needed, cardinality(candidates));
        END LOOP;
        reach := 8 * reach;
    END LOOP;
    RETURN QUERY
    SELECT f.id, f.distance FROM unnest(candidates[1:depth], distances) AS f (id, distance)
    WHERE f.distance IS NOT NULL
    ORDER BY f.distance, f.id
    LIMIT hits;
END
$function$"""

EXPECTED = """
CREATE FUNCTION {schema}.pgcontext_expected(of_tenant uuid, terms tsquery[])
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
    WHERE c.oid = '{schema}.messages'::regclass;
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
    IF messages * coalesce(share, 0) <= 20000 THEN
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

MATCHES = """
CREATE FUNCTION {schema}.pgcontext_matches(
    of_tenant uuid, wanted tsquery, query tsquery, candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = 'force_custom_plan'
AS $function$
BEGIN
    RETURN QUERY
    SELECT m.id
    FROM {schema}.messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.text_search @@ wanted
      AND m.deleted_at IS NULL
      AND (of_roles IS NULL OR m.role = ANY (of_roles))
      AND (since IS NULL OR m.created_at >= since)
      AND (until IS NULL OR m.created_at < until)
      AND (of_model IS NULL OR m.model = of_model)
      AND EXISTS (
          SELECT FROM {schema}.contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NULL
            AND (of_metadata IS NULL OR c.metadata @> of_metadata)
      )
    ORDER BY CASE WHEN query IS NOT NULL THEN
        ts_rank(m.text_search, query)
        / (1 + ln(1 + length(m.text_search) / 100.0::double precision))
    END DESC, CASE WHEN query IS NOT NULL THEN m.id END DESC
    LIMIT candidates;
END
$function$"""

MATCHING = """
CREATE FUNCTION {schema}.pgcontext_matching(
    of_tenant uuid, query tsquery, terms tsquery[], candidates integer, of_roles text[],
    since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid)
LANGUAGE plpgsql STABLE
AS $function$
DECLARE
    expected double precision[] := {schema}.pgcontext_expected(of_tenant, terms);
    rare tsquery[] := ARRAY(
        SELECT o.term
        FROM (
            SELECT t.term, t.place, row_number() OVER rarest_first AS ordinal,
                   sum(t.expected) OVER rarest_first AS running
            FROM unnest(terms, expected) WITH ORDINALITY AS t (term, expected, place)
            WINDOW rarest_first AS (ORDER BY t.expected, t.place ROWS UNBOUNDED PRECEDING)
        ) AS o
        WHERE o.ordinal = 1 OR o.running <= 20000
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
            FROM {schema}.pgcontext_matches(
                of_tenant, wanted, query, candidates, of_roles, since, until, of_metadata, of_model
            ) AS m
        );
        EXIT WHEN wanted = query OR cardinality(found) >= candidates;
        wanted := query;
    END LOOP;
    IF cardinality(found) >= candidates THEN
        FOREACH term IN ARRAY rare[1:32] LOOP
            few := ARRAY(
                SELECT m.id
                FROM {schema}.pgcontext_matches(
                    of_tenant, CASE WHEN any_is_enough THEN term ELSE term && query END, ranked,
                    50, of_roles, since, until, of_metadata, of_model
                ) AS m
            );
            IF cardinality(few) < 50 THEN
                found := found || few;
            END IF;
        END LOOP;
    END IF;
    RETURN QUERY SELECT DISTINCT f.id FROM unnest(found) AS f (id);
END
$function$"""

NEAREST_FUNCTIONS = (SCAN, GRAPH, SIZE, DISTANCES, STANDS_OUT, DEPTH, NEAREST)
MATCHING_FUNCTIONS = (EXPECTED, MATCHES, MATCHING)

FORMER_NEAREST = """
CREATE FUNCTION {schema}.pgcontext_nearest(
    of_tenant uuid, query halfvec, candidates integer, of_embedding_model text,
    of_roles text[], since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid, distance double precision)
LANGUAGE sql STABLE PARALLEL SAFE
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '200'
SET hnsw.max_scan_tuples = '200000'
SET plan_cache_mode = 'force_custom_plan'
AS $function$
    SELECT m.id, m.embedding::halfvec({dimensions}) <=> query AS distance
    FROM {schema}.messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.deleted_at IS NULL
      AND m.embedding IS NOT NULL
      AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
      AND (of_roles IS NULL OR m.role = ANY (of_roles))
      AND (since IS NULL OR m.created_at >= since)
      AND (until IS NULL OR m.created_at < until)
      AND (of_model IS NULL OR m.model = of_model)
      AND EXISTS (
          SELECT FROM {schema}.contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NULL
            AND (of_metadata IS NULL OR c.metadata @> of_metadata)
      )
    ORDER BY m.embedding::halfvec({dimensions}) <=> query
    LIMIT candidates
$function$"""

# The signatures move from the unique key to an index with everything that a search filters by.
INDEX = """
CREATE INDEX messages_signature_idx ON {schema}.messages (tenant_id, role, created_at)
    INCLUDE (id, context_id, model, embedding_model, signature)
    WHERE deleted_at IS NULL AND embedding IS NOT NULL
"""
VERSION_KEY = """
ALTER TABLE {schema}.messages
    DROP CONSTRAINT messages_version_key,
    ADD CONSTRAINT messages_version_key UNIQUE (tenant_id, context_id, version)
"""
FORMER_VERSION_KEY = VERSION_KEY.rstrip() + " INCLUDE (signature)"

# Without the library loaded, only a superuser may SET hnsw.* in a function.
LOAD_LIBRARY = "SELECT '[1]'::vector"

DROP_FORMER = """
DROP FUNCTION {schema}.pgcontext_nearest(
    uuid, halfvec, integer, text, text[], timestamptz, timestamptz, jsonb, text
)
"""
DROP = """
DROP FUNCTION {schema}.pgcontext_nearest(
        uuid, vector, integer, integer, integer, text, text[], timestamptz, timestamptz, jsonb,
        text
    ),
    {schema}.pgcontext_depth(double precision[], double precision[], integer, boolean),
    {schema}.pgcontext_stands_out(double precision[], integer),
    {schema}.pgcontext_distances(uuid, vector, uuid[]),
    {schema}.pgcontext_size(uuid, integer),
    {schema}.pgcontext_graph(uuid, vector, text),
    {schema}.pgcontext_scan(
        uuid, vector, integer, text, text[], timestamptz, timestamptz, jsonb, text
    ),
    {schema}.pgcontext_matching(
        uuid, tsquery, tsquery[], integer, text[], timestamptz, timestamptz, jsonb, text
    ),
    {schema}.pgcontext_matches(
        uuid, tsquery, tsquery, integer, text[], timestamptz, timestamptz, jsonb, text
    ),
    {schema}.pgcontext_expected(uuid, tsquery[])
"""


def execute(text: str) -> None:
    """Run one statement with the configured schema and dimension in place."""
    context = op.get_context()
    schema = context.dialect.identifier_preparer.quote_schema(context.version_table_schema)
    text = text.replace("{schema}", schema).replace("{dimensions}", str(context.opts["dimensions"]))
    op.execute(text)


def upgrade() -> None:
    execute(LOAD_LIBRARY)
    execute(DROP_FORMER)
    execute(INDEX)
    execute(VERSION_KEY)
    for function in (*NEAREST_FUNCTIONS, *MATCHING_FUNCTIONS):
        execute(function)


def downgrade() -> None:
    execute(LOAD_LIBRARY)
    execute(DROP)
    execute("DROP INDEX {schema}.messages_signature_idx")
    execute(FORMER_VERSION_KEY)
    execute(FORMER_NEAREST)
