-- A token, or a set taken as one, by layer and tap: how often it is in the top k, its rank and its probability.
-- token: token to follow, as its text, id:N, or field:NAME as given to --track; repeat for a set
-- tap = resid_post: one tap, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to split by
WITH told AS (  -- prompts, which say what was tracked, are joined only where something was
    SELECT split, tap, layer, ids, logprobs, wanted, NULL::UINTEGER[] AS tracked, NULL::UINTEGER[] AS tracked_rank, NULL::FLOAT[] AS tracked_logprob
    FROM places
    WHERE tracked_rank IS NULL
    UNION ALL
    SELECT split, tap, layer, ids, logprobs, wanted, tracked, tracked_rank, tracked_logprob
    FROM places
    JOIN (SELECT prompt, tracked FROM asked) USING (prompt)
    WHERE tracked_rank IS NOT NULL
),
followed AS (
    SELECT
        *, tracked IS NOT NULL AND tracked_logprob IS NOT NULL AND list_has_all(tracked, wanted) AS exact,
        [nullif(list_position(CASE WHEN exact THEN tracked ELSE ids END, one), 0) FOR one IN wanted] AS found
    FROM told
),
ranked AS (
    SELECT
        split, tap, layer, exact, len(ids) AS k,
        CASE WHEN exact THEN list_min([tracked_rank[one] FOR one IN found]) ELSE list_min(found) END AS rank,
        CASE WHEN rank IS NULL THEN NULL
            WHEN exact THEN summed([tracked_logprob[one] FOR one IN found])
            ELSE summed([logprobs[one] FOR one IN found])
        END AS logprob
    FROM followed
)
SELECT
    split, tap, layer, count(*) AS places, avg((coalesce(rank, k + 1) <= k)::INTEGER) AS share,
    nullif(quantile_disc(coalesce(rank, 4294967295), 0.5), 4294967295) AS median_rank, avg(logprob) AS logprob,
    bool_and(exact) AS exact
FROM ranked
GROUP BY split, tap, layer
ORDER BY split, layer, tap_order(tap)
